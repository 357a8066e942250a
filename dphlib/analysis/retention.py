"""What RL kept of the initial policy: problems, losses by suite, support, behaviour, and one problem's answers.

Each function on a frame takes the rows of `records.parquet` and gives a tidy frame, a row a method (`method` as a
reader sees it), a number `x` with its interval as `x_low` and `x_high`; `readable` makes of it what is shown. Where
the base can be compared with fresh answers of its own it has a row too: what is lost there is chance, not training.

`answers_of` draws from models; the rest is arithmetic on records. Nothing is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dphlib import stats
from dphlib.analysis.labels import NAMES, SUITES
from dphlib.runtime.machine import release_gpu
from dphlib.settings.methods import HEADLINE, METHODS
from dphlib.settings.profiles import Profile
from dphlib.types import Problem
from dphlib.world.templates import STYLES, style_of

DIRECTIONS = ("lost", "gained")
_SUFFIXES = {"nats": " (nats)", "s": " (s)", "gib": " (GiB)"}
_UNITS = dict.fromkeys(("keep", "explore", "truncated", *SUITES.values()), " (%)")


def _main(records: pd.DataFrame) -> pd.DataFrame:
    """Sampled answers of the main runs' final models and of the base.

    Raises:
        ValueError: no answer of the base, which everything here is compared with.
    """
    rows = stats.sampled(stats.final(records[records["variant"] == "main"]))
    if "base" not in set(rows["method"]):
        raise ValueError("no sampled answers of the base model in the records: evaluate the base first (notebook 02)")
    return rows


def _present(rows: pd.DataFrame, methods: Sequence[str]) -> list[str]:
    there = set(rows["method"])
    return [m for m in methods if m in there and m != "base"]


def _again(table: pd.DataFrame, suite: str, k: int) -> np.ndarray | None:
    """b squared of each problem, unbiased from 2k answers: 2 pass@k - pass@2k; None where fewer were judged."""
    if 2 * k > table.loc[(table["method"] == "base") & (table["suite"] == suite), "n"].min():
        return None
    once, twice = (stats.arm(table, "base", suite, "pass", size).values_SP[0] for size in (k, 2 * k))
    return 2 * once - twice


def capability_split(
    records: pd.DataFrame, k: int = 8, methods: Sequence[str] = METHODS, suite: str = "in_domain"
) -> pd.DataFrame:
    """Keep and explore (`stats.keep_explore`), in per cent with intervals, and the numbers of problems behind them.

    Columns: method, keep, explore (each with `_low`, `_high`), preserved, lost, gained (expected numbers of problems,
    mean over seeds), seeds. First row: the base against k fresh answers of its own, where 2k were drawn.
    """
    rows = _main(records)
    table = stats.problem_table(rows[rows["suite"] == suite])
    b_P = stats.arm(table, "base", suite, "pass", k).values_SP[0]
    again_P, out = _again(table, suite, k), []
    if again_P is not None:
        out.append(_split_row("base, drawn again", 0, b_P, again_P[None, :]))
    for method in _present(table, methods):
        values_SP = stats.arm(table, method, suite, "pass", k).values_SP
        out.append(_split_row(NAMES[method], len(values_SP), b_P, b_P * values_SP, (1 - b_P) * values_SP))
    return pd.DataFrame(out)


def _split_row(
    name: str, seeds: int, b_P: np.ndarray, kept_SP: np.ndarray, gained_SP: np.ndarray | None = None
) -> dict[str, object]:
    """One row: expected problems kept and gained, and their shares of what can be kept and gained."""
    gained_SP = b_P - kept_SP if gained_SP is None else gained_SP
    row: dict[str, object] = {"method": name}
    for column, part_SP, whole_P in (("keep", kept_SP, b_P), ("explore", gained_SP, 1 - b_P)):
        row |= dict.fromkeys((column, f"{column}_low", f"{column}_high"), np.nan)
        if whole_P.sum() > 0:  # the parts are divided by b here and multiplied by it there
            share_SP = part_SP / np.where(whole_P > 0, whole_P, 1)
            with np.errstate(divide="ignore", invalid="ignore"):  # few problems: a draw may hold none of them
                got = stats.hierarchical_bootstrap(share_SP, weights_P=whole_P)
            row |= dict(zip((column, f"{column}_low", f"{column}_high"), _per_cent(got, 0.0, 100.0), strict=True))
    kept, gained = float(kept_SP.mean(axis=0).sum()), float(gained_SP.mean(axis=0).sum())
    return row | {"preserved": kept, "lost": float(b_P.sum()) - kept, "gained": gained, "seeds": seeds}


def _per_cent(got: stats.Interval, low: float = -np.inf, high: float = np.inf) -> tuple[float, float, float]:
    return 100.0 * got.estimate, max(low, 100.0 * got.low), min(high, 100.0 * got.high)


def losses(records: pd.DataFrame, k: int = 8, methods: Sequence[str] = HEADLINE) -> pd.DataFrame:
    """Share of the base's Pass@k that each method lost on each suite, 1 - m/b, in per cent; negative: it gained.

    Columns: method, and each suite of the records under its reader's name with `_low`, `_high`. NaN where the base
    solves nothing.
    """
    rows = _main(records)
    table = stats.problem_table(rows)
    suites, out = [s for s in SUITES if s in set(table["suite"])], []
    for method in _present(table, methods):
        row: dict[str, object] = {"method": NAMES[method]}
        for suite in suites:
            arms = [stats.arm(table, name, suite, "pass", k) for name in (method, "base")]
            name = SUITES[suite]
            row |= dict.fromkeys((name, f"{name}_low", f"{name}_high"), np.nan)
            if arms[1].values_SP.mean() > 0:
                with np.errstate(divide="ignore", invalid="ignore"):
                    got = stats.bootstrap(arms, lambda tuned, base: 1 - tuned / base)
                row |= dict(zip((name, f"{name}_low", f"{name}_high"), _per_cent(got), strict=True))
        out.append(row)
    return pd.DataFrame(out)


def support(records: pd.DataFrame, methods: Sequence[str] = HEADLINE, ks: Sequence[int] | None = None) -> pd.DataFrame:
    """Each suite's problems by who reaches them with k answers, at several k: The Invisible Leash's accounting.

    Expected numbers of problems, mean over seeds, which add up to `problems`: preserved (both), lost (base only),
    gained (tuned only), neither. k is at most half of what was drawn, so that the base has a row against its own other
    half. Columns before them: suite, k, method.

    Args:
        records: frame of EvalRecord rows.
        methods: in this order; those that are absent are left out.
        ks: default 1, 8 and half of the answers drawn.

    Raises:
        ValueError: no k that leaves the base a second half, or no answers of the base.
    """
    rows, out = _main(records), []
    table = stats.problem_table(rows)
    for suite in (s for s in SUITES if s in set(table["suite"])):
        of_suite = table[table["suite"] == suite]
        half = int(of_suite["n"].min()) // 2
        wanted = sorted({k for k in (ks or (1, 8, half)) if 1 <= k <= half})
        if not wanted:
            raise ValueError(f"support at k = {list(ks or ())} needs 2k answers a problem, {suite} has {2 * half}")
        for k in wanted:
            b_P = stats.arm(of_suite, "base", suite, "pass", k).values_SP[0]
            both = {"base, drawn again": (_again(of_suite, suite, k), b_P)}
            for method in _present(of_suite, methods):
                t_P = stats.arm(of_suite, method, suite, "pass", k).values_SP.mean(axis=0)
                both[NAMES[method]] = (b_P * t_P, t_P)
            for name, (both_P, t_P) in both.items():
                preserved, size = float(both_P.sum()), len(b_P)  # type: ignore[union-attr]
                lost, gained = float(b_P.sum()) - preserved, float(t_P.sum()) - preserved
                counts = {"preserved": preserved, "lost": lost, "gained": gained}
                counts |= {"neither": size - preserved - lost - gained, "problems": size}
                out.append({"suite": SUITES[suite], "k": k, "method": name, **counts})
    return pd.DataFrame(out)


def measures(records: pd.DataFrame, k: int = 8, methods: Sequence[str] = HEADLINE) -> pd.DataFrame:
    """Every measure of notebook 06 on every suite, a row a suite and model, means over seeds.

    Columns: suite, method, keep, explore (per cent, at k), AUC@K in per cent with K the fewest answers that a problem
    of any suite has, distinct_correct of the first K, per_problem_nats, pooled_nats, entropy_nats and kl_to_base_nats
    (a token), seeds. Of the base, keep and explore are against fresh answers of itself.
    """
    rows, out = _main(records), []
    answers = int(stats.problem_table(rows)["n"].min())
    for suite in (s for s in SUITES if s in set(rows["suite"])):
        of_suite = rows[rows["suite"] == suite]
        split = capability_split(records, k, methods, suite).replace({"method": {"base, drawn again": NAMES["base"]}})
        area = stats.auc_at_k(of_suite, answers).groupby("method", observed=True)["auc_at_k"].mean()
        distinct = stats.distinct_correct(of_suite, answers).groupby("method", observed=True)["distinct_correct"].mean()
        frame = behaviour(records, suite, methods).merge(split[["method", "keep", "explore"]], "left", "method")
        by_name = {name: NAMES[name] for name in area.index}
        frame[f"AUC@{answers} (%)"] = frame["method"].map(100 * area.rename(by_name))
        frame["distinct_correct"] = frame["method"].map(distinct.rename(by_name))
        out.append(frame.assign(suite=SUITES[suite]))
    columns = ["suite", "method", "keep", "explore", f"AUC@{answers} (%)", "distinct_correct", "per_problem_nats",
               "pooled_nats", "entropy_nats", "kl_to_base_nats", "seeds"]  # fmt: skip
    return pd.concat(out, ignore_index=True)[columns]


def behaviour(records: pd.DataFrame, suite: str, methods: Sequence[str] = METHODS) -> pd.DataFrame:
    """How each model answers on a suite, means over seeds, no interval.

    Columns: method, entropy_nats and kl_to_base_nats (a token), tokens, truncated (%), per_problem_nats, pooled_nats
    and styles (`stats.style_entropy`), distinct_correct (of as many answers as every problem has), seeds.
    """
    rows = _main(records)
    rows = rows[(rows["suite"] == suite) & rows["method"].isin(methods)]
    if rows.empty:
        raise ValueError(
            f"no sampled answers on {suite!r}; the records have {', '.join(sorted(set(records['suite'])))}"
        )
    answers = int(rows.groupby(stats.PROBLEM, observed=True).size().min())
    frames = [stats.answer_statistics(rows), stats.style_entropy(rows), stats.distinct_correct(rows, answers)]
    columns = ["entropy_nats", "kl_to_base_nats", "tokens", "truncated", "per_problem_nats", "pooled_nats", "styles",
               "distinct_correct"]  # fmt: skip
    joined = pd.concat([frame.set_index(stats.RUN) for frame in frames], axis=1)[columns]
    groups = joined.groupby(level="method", observed=True)
    out = groups.mean().assign(seeds=groups.size())
    out["truncated"] *= 100
    out = out.loc[[m for m in METHODS if m in out.index]]
    out.insert(0, "method", [NAMES[m] for m in out.index])
    return out.reset_index(drop=True)


def changed_problem(
    records: pd.DataFrame, method: str, direction: str, k: int = 8, rank: int = 0, suite: str = "in_domain"
) -> str:
    """The problem whose mean Pass@k a method lowered (`lost`) or raised (`gained`) most.

    `rank` 1 is the next after it, and so on; ties go by the problem's id. It is chosen to show what a change looks
    like, so it shows no frequency.

    Raises:
        ValueError: an unknown direction, a method that is not in the records, a rank beyond the problems.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction {direction!r}: one of {', '.join(DIRECTIONS)}")
    rows = _main(records)
    table = stats.problem_table(rows[rows["suite"] == suite])
    tuned, base = (stats.arm(table, name, suite, "pass", k) for name in (method, "base"))
    change_P = tuned.values_SP.mean(axis=0) - base.values_SP[0]
    sign = 1 if direction == "lost" else -1
    if not 0 <= rank < len(change_P):
        raise ValueError(f"rank {rank}: the suite {suite} has {len(change_P)} problems, 0 is the one that changed most")
    order = sorted(range(len(change_P)), key=lambda i: (round(sign * change_P[i], 9), tuned.problems[i]))
    return tuned.problems[order[rank]]


def answers_of(
    settings: Profile,
    base: Path,
    trained: Mapping[str, Path | None],
    problem: Problem,
    database_root: Path,
    draws: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Fresh answers of several models to one problem at temperature 1, equal ones counted, most frequent first.

    By Transformers, whatever the profile samples with.

    Args:
        base: folder of the initial policy.
        trained: what a reader calls the model -> the folder of its training; None for the initial policy.
        database_root: folder with `<db_id>/<db_id>.sqlite`, for the verdicts.
        draws: answers a model.

    Returns:
        Columns model, style (not on data sets), times, verdict, answer; a row a different answer.
    """
    from dphlib.experiment import policies
    from dphlib.sampling.protocol import SamplingConfig
    from dphlib.sampling.transformers import TransformersSampler
    from dphlib.verify import Verifier

    rows = []
    with Verifier(database_root) as verifier:
        for name, folder in trained.items():
            setting = SamplingConfig(draws, max_new_tokens=settings.evaluation.max_new_tokens)
            policy, tokenizer = policies.load_trained(settings, base, folder)
            drawn = TransformersSampler(policy, tokenizer).sample([problem], setting, seed)[0]
            del policy  # one at a time on a GPU
            release_gpu()
            counts = Counter(answer.text for answer in drawn)
            texts = sorted(counts, key=lambda text: (-counts[text], text))
            verdicts = verifier.verify_many([(problem, text) for text in texts])
            rows += [
                {
                    "model": name,
                    "style": style_of(text),
                    "times": counts[text],
                    "verdict": verdict.outcome,
                    "answer": text,
                }
                for text, verdict in zip(texts, verdicts, strict=True)
            ]
    frame = pd.DataFrame(rows)
    return frame if settings.data is None else frame.drop(columns="style")


def style_counts(answers: pd.DataFrame) -> pd.DataFrame:
    """What `answers_of` drew, by style: a row a model, a column a style, how many are correct, and how many differ.

    By verdict where there are no styles.
    """
    if "style" not in answers:
        verdicts = pd.crosstab(answers["model"], answers["verdict"], values=answers["times"], aggfunc="sum").fillna(0)
        verdicts = verdicts.astype(int).loc[list(dict.fromkeys(answers["model"]))]
        verdicts["different answers"] = answers.groupby("model").size()
        return verdicts.rename_axis(columns=None).reset_index()
    styles = (
        pd.crosstab(answers["model"], answers["style"], values=answers["times"], aggfunc="sum").fillna(0).astype(int)
    )
    columns = [*STYLES, *(name for name in styles.columns if name not in STYLES)]
    styles = styles.reindex(columns=columns, fill_value=0).loc[list(dict.fromkeys(answers["model"]))]
    right = answers[answers["verdict"] == "correct"].groupby("model")["times"].sum()
    styles["correct"] = right.reindex(styles.index, fill_value=0).astype(int)
    styles["different answers"] = answers.groupby("model").size()
    return styles.rename_axis(columns=None).reset_index()


def readable(frame: pd.DataFrame, digits: int = 1) -> pd.DataFrame:
    """A frame as it is read: `x`, `x_low`, `x_high` become one text, others are rounded; absent, infinite: a dash.

    >>> readable(pd.DataFrame({"keep": [81.26], "keep_low": [79.0], "keep_high": [83.5], "seeds": [3]})).to_dict("list")
    {'keep (%)': ['81.3 [79.0, 83.5]'], 'seeds': ['3']}
    """
    out = {}
    for name in (n for n in frame.columns if not n.endswith(("_low", "_high"))):
        texts = [_text(value, digits) for value in frame[name]]
        if f"{name}_low" in frame:
            ends = zip(frame[f"{name}_low"], frame[f"{name}_high"], strict=True)
            texts = [
                t if t == "-" else f"{t} [{_text(a, digits)}, {_text(b, digits)}]"
                for t, (a, b) in zip(texts, ends, strict=True)
            ]
        head, _, tail = name.rpartition("_")
        out[(head if tail in _SUFFIXES else name).replace("_", " ") + (_UNITS.get(name) or _SUFFIXES.get(tail, ""))] = (
            texts
        )
    return pd.DataFrame(out)


def _text(value: object, digits: int) -> str:
    if isinstance(value, float | np.floating):
        return "-" if not np.isfinite(value) else f"{round(float(value), digits) + 0.0:.{digits}f}"
    return str(value)
