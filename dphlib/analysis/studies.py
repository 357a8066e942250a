"""What one setting changes: each ablation and study in a tidy table and in sentences, and what an iteration costs.

`study_table` has one row per comparison, suite and measure: both arms' means and their paired difference, with
intervals. `sentences` puts each comparison into words. `effects` sets every variant of the records beside its own main
arm. `token_budget` and `cost_table` count and time. Tables 3, 4 and 5 themselves are in `tables`.

Arms may have different numbers of seeds; both are named beside the effect. Arms that differ in the number of answers,
in temperature, token limit or problems are refused (`intervals.check_comparable`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dphlib import stats
from dphlib.analysis.claims import too_few
from dphlib.analysis.labels import NAMES, SUITES, label
from dphlib.intervals import Scores, holm, interval
from dphlib.scores import ArmScores
from dphlib.settings.methods import CONTROLS, METHODS
from dphlib.settings.profiles import Profile
from dphlib.settings.studies import Arm, Comparison, comparisons
from dphlib.settings.variants import MAIN, RunConfig, parse

_MEASURES: dict[str, tuple[stats.Metric, int]] = {
    "greedy": ("greedy", 1),
    "Pass@1": ("pass", 1),
    "Pass@8": ("pass", 8),
    "Pass@16": ("pass", 16),
    "styles_nats": ("styles_nats", 0),
}
_ORDER = (*METHODS, *CONTROLS)
_NUMBERS = ("mean", "mean_low", "mean_high", "against_mean", "difference", "low", "high", "p", "p_holm")
COLUMNS = ["study", "change", "arm", "against", "suite", "measure", "unit"]
COLUMNS += [*_NUMBERS, "seeds", "against_seeds", "status"]
LEVEL = 0.05
"""A difference is clear where its Holm's p is below this, of enough runs, and unclear otherwise: not zero for that."""
NOT_RUN = ": not run."
"""How the sentence ends of a comparison that was not made."""
SPOKEN = (("in domain", "Pass@8"), ("out of domain", "Pass@8"))
"""What a sentence says: suite and measure."""


def _found(scores: ArmScores, arm: Arm, suite: str, measure: str) -> Scores | None:
    """One measure of an arm; None where it is absent, has too few answers or no styles."""
    metric, k = _MEASURES[measure]
    answers = scores.answers(arm.method, suite, metric, arm.variant)
    return None if answers is None or answers < k else scores.get(arm.method, suite, metric, k, arm.variant)


def study_table(
    records: pd.DataFrame, settings: Profile, names: Sequence[str], suites: Sequence[str] = tuple(SUITES)
) -> pd.DataFrame:
    """Studies as a tidy table, one row per comparison, suite and measure; columns are `COLUMNS`.

    `mean` with its interval is the arm's, in per cent (style entropy: nats); `difference` is arm minus `against` on the
    same problems; `p` is the probability of one so far from zero if there were none, `p_holm` that of Holm's adjustment
    over the comparisons of the study, for the same suite and measure. A comparison one of whose arms is not in the
    records keeps its rows, as `not run`.

    Args:
        records: frame of EvalRecord rows; each run's last step is compared.
        settings: the profile, which knows the studies' arms.
        names: of `studies.STUDIES`.
        suites: which to compare on.

    Raises:
        ValueError: arms that must not be compared.
    """
    every = [(name, one) for name in names for one in comparisons(settings, name)]
    arms = [tuple(arm) for _, one in every for arm in (one.arm, one.against)]
    chosen = pd.MultiIndex.from_frame(records[["method", "variant"]]).isin(arms)
    scores, rows = ArmScores.final(records[chosen]), []
    for name, one in every:
        said = {"study": name, "change": change_of(one, settings), "arm": label(*one.arm)}
        said["against"] = label(*one.against)
        rows += [{**said, **_compared(scores, one, suite, measure)} for suite in suites for measure in _MEASURES]
    table = pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(_NUMBERS, float))
    for family in table.groupby(["study", "suite", "measure"], sort=False).groups.values():
        table.loc[family, "p_holm"] = holm(table.loc[family, "p"])
    return table


def _compared(scores: ArmScores, one: Comparison, suite: str, measure: str) -> dict[str, Any]:
    """The numbers of a row of `study_table`, in points (style entropy: nats); of what was run."""
    in_nats = measure == "styles_nats"
    scale = 1.0 if in_nats else 100.0
    arm, against = (_found(scores, arm, suite, measure) for arm in (one.arm, one.against))
    row: dict[str, Any] = {"suite": SUITES[suite], "measure": measure, "unit": "nats" if in_nats else "points"}
    row |= {"seeds": len(arm.seeds) if arm else 0, "against_seeds": len(against.seeds) if against else 0}
    if against:
        row["against_mean"] = scale * against.mean
    if arm:
        got = interval([arm])
        row |= got.columns("mean", 0.0, np.inf if in_nats else 100.0, scale)
    if not (arm and against):
        return {**row, "status": "not run"}
    got = interval([arm, against], np.subtract)
    numbers = {"difference": scale * got.estimate, "low": scale * got.low, "high": scale * got.high, "p": got.p_of(0.0)}
    return {**row, **numbers, "status": "run"}


def few_runs(rows: pd.Series | pd.DataFrame) -> Any:
    """Whether an arm of a row of `study_table`, or of each of its rows, has fewer runs than decide anything."""
    return too_few(rows["seeds"], rows["against_seeds"])


def is_clear(rows: pd.Series | pd.DataFrame) -> Any:
    """Whether the difference of a row of `study_table`, or of each row, is clear: by Holm's p, of enough runs."""
    return (rows["p_holm"] < LEVEL) & ~few_runs(rows)


def readable_study(table: pd.DataFrame) -> pd.DataFrame:
    """A study's table as it is read: one row per comparison and suite, with Holm's p of Pass@8 and what it says."""
    rows = []
    for (arm, against, suite), part in table.groupby(["arm", "against", "suite"], sort=False):
        row: dict[str, object] = {"arm": arm, "against": against, "suite": suite}
        for measure in ("greedy", "Pass@1", "Pass@8", "styles_nats"):
            one = part[part["measure"] == measure].iloc[0]
            row |= {measure: one["difference"], f"{measure}_low": one["low"], f"{measure}_high": one["high"]}
        passed = part[part["measure"] == "Pass@8"].iloc[0]
        row["Holm's p of Pass@8"] = passed["p_holm"]
        unclear = "-" if np.isnan(passed["p_holm"]) else "○ unclear"
        row["Pass@8 is"] = "**● clear**" if is_clear(passed) else unclear
        seeds = part[["seeds", "against_seeds"]].max()
        row["seeds"] = f"{seeds['seeds']} against {seeds['against_seeds']}"
        rows.append(row | {"status": "run" if (part["status"] == "run").any() else "not run"})
    return pd.DataFrame(rows)


# --- In words -------------------------------------------------------------------------------------

_NOUNS: dict[str, tuple[str, Callable[[RunConfig, Profile], float]]] = {
    "eta": ("the weight eta of {name}", lambda run, s: s.method_config(run).weight),
    "authors_eta": ("the weight of {name} to the authors' eta / {value},", lambda run, s: s.method_config(run).weight),
    "js_scale": ("the weight of {name} by the authors' {value} x JS,", lambda run, s: s.method_config(run).weight),
    "clip_high": ("the upper clip of {name}", lambda run, settings: run.method_config.clip_high),
    "entropy": ("the entropy bonus of {name}", lambda run, settings: run.method_config.entropy_coef),
    "threshold": ("the threshold of {name}", lambda run, s: run.presample_config(s.presample).threshold),
    "k": ("the pre-samples k of {name}", lambda run, s: run.presample_config(s.presample).k),
    "answers": ("the stored answers per prompt of {name}", lambda run, s: run.presample_config(s.presample).answers),
    "iterations": ("the iterations of {name}", lambda run, s: run.train_config(s.train).iterations),
    "top_p": ("the rollouts' top_p of {name}", lambda run, s: run.train_config(s.train).top_p),
}


def change_of(one: Comparison, settings: Profile) -> str:
    """What a comparison changes, as the beginning of a sentence.

    >>> from dphlib.settings.profiles import profile
    >>> change_of(Comparison(Arm("dph_f", "eta=0.05"), Arm("dph_f")), profile("cpu"))
    'Lowering the weight eta of DPH-F from 0.2 to 0.05'
    """
    if one.change:
        return one.change
    name, (key, value) = NAMES[one.arm.method], parse(one.arm.variant)
    if key not in _NOUNS or one.against != Arm(one.arm.method):
        return f"{label(*one.arm)}, instead of {label(*one.against)}"
    noun, of = _NOUNS[key]
    to, before = of(RunConfig(*one.arm, 0), settings), of(RunConfig(*one.against, 0), settings)
    shown = noun.format(name=name, value=f"{value:g}" if isinstance(value, float) else value)
    return f"{'Raising' if to > before else 'Lowering'} {shown} from {before:g} to {to:g}"


def sentences(table: pd.DataFrame) -> list[str]:
    """One sentence per comparison of `study_table`: what it changes, by how much on each of `SPOKEN`, the seeds.

    A difference is clear or not by `LEVEL`. The family of Holm's p, whose size is named, is that of `study_table`: pass
    studies whole.
    """
    said = []
    for (_, change), part in table.groupby(["study", "change"], sort=False):
        effects = [_spoken(part, table, suite, measure) for suite, measure in SPOKEN]
        effects = [text for text in effects if text]
        seeds = part.loc[part["status"] == "run", ["seeds", "against_seeds"]]
        one, other = (seeds["seeds"].max(), seeds["against_seeds"].max())
        counted = f" ({one} run{'s' if one != 1 else ''} against {other})" if len(seeds) else ""
        said.append(f"{change} changes {'; '.join(effects)}{counted}." if effects else f"{change.rstrip(',')}{NOT_RUN}")
    return said


def _spoken(part: pd.DataFrame, table: pd.DataFrame, suite: str, measure: str) -> str:
    found = part[(part["suite"] == suite) & (part["measure"] == measure) & (part["status"] == "run")]
    if found.empty:
        return ""
    one = found.iloc[0]
    by = f"{suite.replace(' ', '-')} {measure} by {one['difference']:+.1f} {one['unit']}"
    by += f" [{one['low']:+.1f}, {one['high']:+.1f}]"
    if one["low"] <= 0 <= one["high"]:
        return f"{by}, unclear"
    family = table[(table["study"] == one["study"]) & (table["suite"] == suite) & (table["measure"] == measure)]
    if few_runs(one):
        return f"{by}, unclear (too few runs)"
    p = "below 0.001" if one["p_holm"] < 0.001 else f"{one['p_holm']:.3f}"
    corrected = f"Holm's p of {int(family['p_holm'].notna().sum())} is {p}"
    return f"{by}, clear ({corrected})" if is_clear(one) else f"{by}, unclear (p {one['p']:.3f}, {corrected})"


# --- Every variant against its main arm -----------------------------------------------------------


def effects(records: pd.DataFrame, suites: Sequence[str] = tuple(SUITES)) -> pd.DataFrame:
    """Each variant of the records minus the main arm of its method, in points (style entropy: nats), with intervals.

    Columns: ablation, suite, then for each of `_MEASURES` the difference with `_low` and `_high`, then seeds
    (ablation's and main arm's). NaN where an arm has fewer answers than the measure needs. A suite that either was
    not evaluated on has no row; without ablations, of which some profiles have none, there are no rows.
    """
    scores, variants = ArmScores.final(records), records["variant"] != MAIN
    arms = [Arm(*row) for row in records.loc[variants, ["method", "variant"]].drop_duplicates().to_numpy().tolist()]
    out = []
    for arm in sorted(arms, key=lambda arm: (arm.variant, _ORDER.index(arm.method))):
        for suite in suites:
            row: dict[str, object] = {"ablation": label(*arm), "suite": SUITES[suite]}
            for measure in _MEASURES:
                got = _compared(scores, Comparison(arm, Arm(arm.method)), suite, measure)
                if got["status"] != "run":
                    continue
                row |= {measure: got["difference"], f"{measure}_low": got["low"], f"{measure}_high": got["high"]}
                row["seeds"] = f"{got['seeds']} against {got['against_seeds']}"
            if "seeds" in row:
                out.append(row)
    frame = pd.DataFrame(out) if out else pd.DataFrame(columns=["ablation", "suite", *_MEASURES, "seeds"], dtype=object)
    return frame[[name for name in frame.columns if name != "seeds"] + ["seeds"]]


def token_budget(train_logs: pd.DataFrame, prompts: int) -> pd.DataFrame:
    """What an iteration of each method was given and what passed through a model, means over iterations and seeds.

    Args:
        prompts: of a batch, the whole that `informative groups (%)` is a share of.

    Returns:
        One row per method and variant: rollouts, informative groups (%) (those whose rewards differ), rehearsed
        answers, policy and reference tokens, iterations and seeds.
    """
    groups = train_logs.groupby(["method", "variant"], observed=True)
    names = {
        "rl_rows": "rollouts",
        "rehearsal_rows": "rehearsed answers",
        "policy_tokens": "policy tokens",
        "reference_tokens": "reference tokens",
    }
    out = groups[list(names)].mean().rename(columns=names)
    out.insert(1, "informative groups (%)", 100 * groups["informative_groups"].mean() / prompts)
    out = out.assign(iterations=groups["iteration"].max(), seeds=groups["seed"].nunique())
    order = sorted(out.index, key=lambda key: (key[1] != "main", key[1], _ORDER.index(key[0])))
    out = out.loc[order]
    out.insert(0, "method", [label(*key) for key in out.index])
    return out.reset_index(drop=True)


def cost_table(cost: pd.DataFrame) -> pd.DataFrame:
    """The cost of an iteration of each method: tokens (exact, mean) and seconds (noisy, median and middle half).

    Columns: method, iterations, policy tokens, reference tokens, reference per policy token, step_s with `_low` and
    `_high` (quartiles), reference_s (median), peak_gib.
    """
    groups = cost.groupby("method", observed=True)
    quartiles = groups["step_s"].quantile([0.25, 0.5, 0.75]).unstack()
    tokens = groups[["policy_tokens", "reference_tokens"]].mean()
    out = pd.DataFrame(
        {
            "iterations": groups.size(),
            "policy tokens": tokens["policy_tokens"],
            "reference tokens": tokens["reference_tokens"],
            "reference per policy token": tokens["reference_tokens"] / tokens["policy_tokens"],
            "step_s": quartiles[0.5],
            "step_s_low": quartiles[0.25],
            "step_s_high": quartiles[0.75],
            "reference_s": groups["reference_s"].median(),
            "peak_gib": groups["peak_gib"].max(),
        }
    )
    out = out.loc[[m for m in _ORDER if m in out.index]]
    out.insert(0, "method", [NAMES[m] for m in out.index])
    return out.reset_index(drop=True)
