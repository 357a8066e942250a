"""What RL kept of the initial policy: problems, losses by suite, support, behaviour, and one problem's answers.

Each function on a frame takes the rows of `records.parquet` and gives a tidy frame, one row per method (`method` as a
reader sees it), a number `x` with its interval as `x_low` and `x_high`; `tables.shown` makes of it what is shown. Where
the base can be compared with fresh answers of its own it has a row too: what is lost there is chance, not training.

It is arithmetic on records; nothing is written.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dphlib import stats
from dphlib.analysis.labels import NAMES, SUITES
from dphlib.analysis.tables import code, verdict
from dphlib.intervals import Interval, interval
from dphlib.scores import ArmScores, Split, keep_and_explore
from dphlib.settings.methods import HEADLINE, METHODS
from dphlib.world.templates import STYLES

DIRECTIONS = ("lost", "gained")
AGAIN = "base, drawn again"
"""The row of the base against fresh answers of its own."""


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


def capability_split(
    records: pd.DataFrame, k: int = 8, methods: Sequence[str] = METHODS, suite: str = "in_domain"
) -> pd.DataFrame:
    """Keep and explore (`scores.keep_and_explore`), in per cent with intervals, and the numbers of problems behind.

    Columns: method, keep, explore (each with `_low`, `_high`), preserved, lost, gained (expected numbers of problems,
    mean over seeds), seeds. First row: the base against k fresh answers of its own, where 2k were drawn.
    """
    rows = _main(records)
    rows = rows[rows["suite"] == suite]
    scores, out = ArmScores.final(rows), []
    again = ["base"] if (scores.answers("base", suite) or 0) >= 2 * k else []
    for method in [*again, *_present(rows, methods)]:
        split = keep_and_explore(scores, method, suite, k)
        row: dict[str, object] = {"method": NAMES[method] if method != "base" else AGAIN}
        row |= _columns("keep", split.keep(), 0.0, 100.0) | _columns("explore", split.explore(), 0.0, 100.0)
        row |= {"preserved": split.preserved, "lost": split.lost, "gained": split.gained}
        out.append({**row, "seeds": len(split.both.seeds) if method != "base" else 0})
    return pd.DataFrame(out)


def _columns(name: str, got: Interval | None, low: float = -np.inf, high: float = np.inf) -> dict[str, float]:
    """`Interval.columns`, NaN without an interval."""
    return got.columns(name, low, high) if got else dict.fromkeys((name, f"{name}_low", f"{name}_high"), np.nan)


def losses(records: pd.DataFrame, k: int = 8) -> pd.DataFrame:
    """Share of the base's Pass@k that each method lost on each suite, 1 - m/b, in per cent; negative: it gained.

    Columns: method, each suite of the records under its reader's name with `_low`, `_high`, and seeds. NaN where the
    base solves nothing.
    """
    rows = _main(records)
    scores, out = ArmScores.final(rows), []
    for method in _present(rows, HEADLINE):
        row: dict[str, object] = {"method": NAMES[method]}
        for suite in (s for s in SUITES if s in set(rows["suite"])):
            pair = [scores.of(name, suite, "pass", k) for name in (method, "base")]
            got = None
            if pair[1].mean > 0:
                got = interval(pair, lambda tuned, base: 1 - tuned / base)
            row |= _columns(SUITES[suite], got)
        out.append({**row, "seeds": len(pair[0].seeds)})
    return pd.DataFrame(out)


def support(records: pd.DataFrame, methods: Sequence[str] = HEADLINE) -> pd.DataFrame:
    """Each suite's problems by who reaches them with k answers, at several k: The Invisible Leash's accounting.

    Expected numbers of problems, mean over seeds, which add up to `problems`: preserved (both), lost (base only),
    gained (tuned only), neither; lost and gained with intervals. k is 1, 8 and half of what was drawn, no
    more, so that the base has a row against its own other half. Columns before them: suite, k, method.

    Args:
        records: frame of EvalRecord rows.
        methods: in this order; those that are absent are left out.

    Raises:
        ValueError: one answer, of which there is no half, or no answers of the base.
    """
    rows = _main(records)
    scores, out = ArmScores.final(rows), []
    for suite in (s for s in SUITES if s in set(rows["suite"])):
        present = ["base", *_present(rows[rows["suite"] == suite], methods)]
        half = min(scores.answers(method, suite) or 0 for method in present) // 2
        if half == 0:
            raise ValueError(f"support needs two answers per problem, {suite} has one")
        for k in sorted({k for k in (1, 8, half) if k <= half}):
            for method in present:
                split = keep_and_explore(scores, method, suite, k)
                size = split.problems
                counts: dict[str, float] = {"preserved": split.preserved}
                for reached, got in (("lost", _lost(split)), ("gained", interval([split.new]))):
                    numbers = got.columns(reached, 0.0, 100.0)
                    counts |= {column: size * value / 100 for column, value in numbers.items()}
                neither = size - sum(counts[reached] for reached in ("preserved", "lost", "gained"))
                counts |= {"neither": neither, "problems": size}
                name = NAMES[method] if method != "base" else AGAIN
                out.append({"suite": SUITES[suite], "k": k, "method": name, **counts})
    return pd.DataFrame(out)


def _lost(split: Split) -> Interval:
    """The share of the problems that the base solves and the model does not."""
    return interval([split.solved, split.both], np.subtract)


def measures(records: pd.DataFrame, k: int = 8) -> pd.DataFrame:
    """Every measure of notebook 06 on every suite, one row per suite and model, means over seeds.

    Columns: suite, method, keep, explore (per cent, at k), AUC@K in per cent with K the fewest answers that a problem
    of any suite has, distinct_correct of all answers, per_problem_nats, pooled_nats, entropy_nats and kl_to_base_nats
    (per token), seeds. Of the base, keep and explore are against fresh answers of itself.
    """
    rows, out = _main(records), []
    answers = int(rows["n"].min())
    for suite in (s for s in SUITES if s in set(rows["suite"])):
        of_suite = rows[rows["suite"] == suite]
        split = capability_split(records, k, HEADLINE, suite).replace({"method": {AGAIN: NAMES["base"]}})
        area = stats.auc_at_k(of_suite, answers).groupby("method", observed=True)["auc_at_k"].mean()
        frame = behaviour(records, suite, HEADLINE).merge(split[["method", "keep", "explore"]], "left", "method")
        frame[f"AUC@{answers} (%)"] = frame["method"].map(100 * area.rename(NAMES))
        out.append(frame.assign(suite=SUITES[suite]))
    columns = ["suite", "method", "keep", "explore", f"AUC@{answers} (%)", "distinct_correct"]
    columns += ["per_problem_nats", "pooled_nats", "entropy_nats", "kl_to_base_nats", "seeds"]
    return pd.concat(out, ignore_index=True)[columns]


def behaviour(records: pd.DataFrame, suite: str, methods: Sequence[str] = METHODS) -> pd.DataFrame:
    """How each model answers on a suite, means over seeds, no interval.

    Columns: method, entropy_nats and kl_to_base_nats (per token), tokens, truncated (%), per_problem_nats, pooled_nats
    and styles (`stats.style_entropy`), distinct_correct (of all answers), seeds.
    """
    rows = _main(records)
    rows = rows[(rows["suite"] == suite) & rows["method"].isin(methods)]
    if rows.empty:
        raise ValueError(
            f"no sampled answers on {suite!r}; the records have {', '.join(sorted(set(records['suite'])))}"
        )
    frames = [stats.answer_statistics(rows), stats.style_entropy(rows), stats.distinct_correct(rows)]
    columns = ["entropy_nats", "kl_to_base_nats", "tokens", "truncated"]
    columns += ["per_problem_nats", "pooled_nats", "styles", "distinct_correct"]
    joined = pd.concat([frame.set_index(stats.RUN) for frame in frames], axis=1)[columns]
    groups = joined.groupby(level="method", observed=True)
    out = groups.mean().assign(seeds=groups.size())
    out["truncated"] *= 100
    out = out.loc[[m for m in METHODS if m in out.index]]
    out.insert(0, "method", [NAMES[m] for m in out.index])
    return out.reset_index(drop=True)


def changed_problem(
    records: pd.DataFrame, method: str, direction: str, k: int = 8, rank: int = 0, than: str = "base"
) -> str:
    """The in-domain problem on which a method's mean Pass@k is furthest below another's (`lost`), or above (`gained`).

    `rank` 1 is the next after it, and so on; ties go by the problem's id. It is chosen to show what a change looks
    like, so it shows no frequency.

    Raises:
        ValueError: an unknown direction, a method that is not in the records, a rank beyond the problems.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction {direction!r}: one of {', '.join(DIRECTIONS)}")
    scores = ArmScores.final(_main(records))
    tuned, other = (scores.of(name, "in_domain", "pass", k) for name in (method, than))
    change_P = tuned.units_UP.mean(axis=0) - other.started_from(tuned.bases).units_UP.mean(axis=0)
    sign = 1 if direction == "lost" else -1
    if not 0 <= rank < len(change_P):
        raise ValueError(f"rank {rank}: in_domain has {len(change_P)} problems, 0 is the one that changed most")
    order = sorted(range(len(change_P)), key=lambda i: (round(sign * change_P[i], 9), tuned.problems[i]))
    return tuned.problems[order[rank]]


def of_seed(records: pd.DataFrame, seed: int, base: int) -> pd.DataFrame:
    """The rows of the runs with a seed, and of the base model that they started from, whose index is `base`."""
    is_base = records["method"] == "base"
    return records[(is_base & (records["seed"] == base)) | (~is_base & (records["seed"] == seed))]


def side_by_side(answers: pd.DataFrame, most: int = 4) -> pd.DataFrame:
    """Each model's most frequent answers in a column of its own: how often, with which verdict, and the text.

    Args:
        answers: one row per different answer, most frequent first: model, times, verdict, answer.

    >>> one = {"model": "base", "times": 3, "verdict": "correct", "answer": "SELECT 1"}
    >>> side_by_side(pd.DataFrame([one])).to_dict("list")
    {'base': ['3 × <span style="color:#0070BA">✔&nbsp;correct</span><br><code>SELECT 1</code>']}
    """
    counted = answers["times"].astype(str) + " × " + answers["verdict"].map(verdict)
    texts = counted + "<br>" + answers["answer"].map(code)
    columns = {name: texts[part.index].tolist()[:most] for name, part in answers.groupby("model", sort=False)}
    return pd.DataFrame({name: pd.Series(column) for name, column in columns.items()}).fillna("")


def style_counts(answers: pd.DataFrame) -> pd.DataFrame:
    """Answers by style: one row per model, one column per style, how many are correct, and how many differ.

    By verdict where there are no styles.
    """
    by = "style" if "style" in answers else "verdict"
    counts = pd.crosstab(answers["model"], answers[by], values=answers["times"], aggfunc="sum").fillna(0).astype(int)
    counts = counts.loc[list(dict.fromkeys(answers["model"]))]
    if by == "style":
        columns = [*STYLES, *(name for name in counts.columns if name not in STYLES)]
        counts = counts.reindex(columns=columns, fill_value=0)
        right = answers[answers["verdict"] == "correct"].groupby("model")["times"].sum()
        counts["correct"] = right.reindex(counts.index, fill_value=0).astype(int)
    counts["different answers"] = answers.groupby("model").size()
    return counts.rename_axis(columns=None).reset_index()
