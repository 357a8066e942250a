"""The results of figures and tables in words, with their intervals: what a notebook writes under each.

    bullets([crossing(scores, method) for method in ("grpo", "dph_js")])

Each function takes scores, records' tables or way-points and gives sentences, nothing else. A difference whose 95 %
interval holds 0 is called unclear. Of `too_few` runs it is said that they are too few to decide, and of
what is absent that it was not run. Comparisons of studies are put into words by `studies.sentences`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite

import numpy as np
import pandas as pd

from dphlib.analysis import studies
from dphlib.analysis.claims import ClaimResult, effect_text, too_few, verdict_counts
from dphlib.analysis.labels import NAMES, SUITES
from dphlib.analysis.retention import AGAIN
from dphlib.analysis.waypoints import RUN, K, at_stopping
from dphlib.analysis.weights import chosen_weight
from dphlib.intervals import Interval, Scores, interval
from dphlib.scores import ArmScores
from dphlib.settings.profiles import Profile
from dphlib.settings.studies import STUDIES
from dphlib.settings.variants import MAIN, RunConfig
from dphlib.stats import Metric
from dphlib.types import base_of

IN = "in_domain"
EVERY_K = 32
"""Up to so many answers a crossing is looked for at every k, beyond it at powers of two."""
NAMED = 3
"""Up to so many comparisons that were not run are named, more are counted."""
CLEAR, UNCLEAR, NOTHING = "●", "○", "–"
"""Before a study's sentence: Holm's p of one of its effects is below `studies.LEVEL`, of none, not run."""


def bullets(sentences: Iterable[str]) -> str:
    """Sentences as a Markdown list, in which no line breaks before a per cent sign."""
    return "\n".join(f"- {sentence}" for sentence in sentences).replace(" %", "\u00a0%")


# --- Numbers --------------------------------------------------------------------------------------


def _signed(got: Interval, unit: str = "", scale: float = 100.0, digits: int = 1) -> str:
    """A difference with its interval; a single run on no problems has none."""
    said = f"{scale * got.estimate:+.{digits}f}"
    if got.standard_error > 0:
        said += f" [{scale * got.low:+.{digits}f}, {scale * got.high:+.{digits}f}]"
    return f"{said} {unit}".rstrip() + (" (unclear)" if got.low <= 0 <= got.high else "")


def _runs(count: int) -> str:
    few = ", too few to decide" if too_few(count) else ""
    return f" ({count} run{'s' if count != 1 else ''}{few})"


def _per_cent(row: Mapping[str, float], name: str) -> str:
    """A number of a tidy frame with its interval `name_low` to `name_high`."""
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if not isfinite(value):
        return "an unknown share"
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def _signed_row(row: Mapping[str, float], name: str) -> str:
    """A difference of a tidy frame with its interval `name_low` to `name_high`."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:+.1f} [{low:+.1f}, {high:+.1f}]" + (" (unclear)" if low <= 0 <= high else "")


def _listed(parts: Sequence[str]) -> str:
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]


def _the(method: str) -> str:
    return "the base" if method == "base" else NAMES[method]


def _not_run(method: str) -> str:
    return f"{NAMES[method]}: not run."


def _where(suite: str) -> str:
    """How a sentence on a suite begins: that of most sentences, in domain, is not named."""
    return "" if suite == IN else f"{SUITES[suite].capitalize()}, "


# --- Pass@k, greedy accuracy, styles --------------------------------------------------------------


def crossing(scores: ArmScores, method: str, k: int = 8, suite: str = IN, against: str = "base") -> str:
    """Where a method's mean Pass@k crosses that of another one, the base's as a rule, and both ends of the curve.

    Args:
        k: answers of the second difference; at most as many as both were asked for.
    """
    answers = [scores.answers(name, suite) for name in (method, against)]
    most = min((n for n in answers if n is not None), default=0)
    if None in answers or not most:
        return _not_run(method)
    got = {n: _difference(scores, method, against, suite, "pass", n) for n in _looked_at(most)}
    shown = {n: got[n] for n in sorted({1, min(k, most)})}
    numbers = ", ".join(f"Pass@{n} {_signed(one)}" for n, one in shown.items())
    runs = len(scores.of(method, suite).seeds)
    return f"{_where(suite)}{NAMES[method]} {_course(got, _the(against))}: {numbers} points{_runs(runs)}."


def _looked_at(most: int) -> list[int]:
    return [n for n in range(1, most + 1) if n <= EVERY_K or not n & (n - 1)]


def crossing_k(scores: ArmScores, method: str, suite: str = IN, against: str = "base") -> int | None:
    """The first k at which a method that begins above another one is below it, as `crossing` says; None for none."""
    most = min(scores.answers(name, suite) or 0 for name in (method, against))
    for k in _looked_at(most):
        change = round(_difference(scores, method, against, suite, "pass", k).estimate, 12)
        if change < 0 or (k == 1 and change == 0):
            return k if k > 1 else None
    return None


def _difference(scores: ArmScores, method: str, against: str, suite: str, metric: Metric, k: int) -> Interval:
    return interval([scores.of(name, suite, metric, k) for name in (method, against)], np.subtract)


def _course(got: Mapping[int, Interval], other: str) -> str:
    """How a curve compares with another one, by the differences of their means at each k."""
    signs = {k: np.sign(round(one.estimate, 12)) for k, one in got.items()}
    first, last = next(iter(signs)), max(signs)
    above, below = ([k for k, sign in signs.items() if sign == wanted] for wanted in (1, -1))
    if not above and not below:
        return f"equals {other} at every k"
    if not below:
        return f"stays above {other} at every k up to {last}"
    if not above:
        return f"stays below {other} at every k up to {last}"
    if signs[first] > 0:
        return f"crosses {other} at k = {below[0]}"
    return f"starts below {other} and is above it from k = {above[0]}"


def room(scores: ArmScores, suite: str = IN, k: int = 8) -> str:
    """What the base solves with one answer and with k: what its diversity is worth, and what there is to lose."""
    if (answers := scores.answers("base", suite)) is None:
        return _not_run("base")
    k = min(k, answers)
    parts = [scores.of("base", suite, "pass", n) for n in (k, 1)]
    several, one = (interval([part]) for part in parts)
    solved = [
        f"{100 * got.estimate:.1f} % [{max(0.0, 100 * got.low):.1f}, {min(100.0, 100 * got.high):.1f}]"
        for got in (one, several)
    ]
    worth = _signed(interval(parts, np.subtract))
    bases = f", {len(parts[0].seeds)} bases" if len(parts[0].seeds) > 1 else ""
    where = SUITES[suite].capitalize()
    return f"{where} the base solves {solved[0]} with one answer and {solved[1]} with {k}: {worth} points{bases}."


def inside(of_bases: Mapping[int, pd.DataFrame]) -> str:
    """Whether each base is in the regime (`regime.regime`), the quantities outside named; "" on data sets."""
    if any("inside" not in found for found in of_bases.values()):
        return ""
    outside = [
        f"{row.quantity} of base {index}, {row.value:.3g} for {row.low:g} to {row.high:.3g}"
        for index, found in of_bases.items()
        for row in found[~found["inside"]].itertuples()
    ]
    count = sum(map(len, of_bases.values()))
    if not outside:
        return f"All {count} quantities of {len(of_bases)} bases are within their ranges."
    named = outside[:3] + [f"and {len(outside) - 3} more"] * (len(outside) > 3)
    return f"{count - len(outside)} of {count} quantities are within their ranges; outside: {'; '.join(named)}."


def gain_and_price(scores: ArmScores, method: str, k: int = 8, suite: str = IN) -> str:
    """What a method gains in greedy accuracy against its base, and what it pays in Pass@k."""
    if None in [scores.answers(name, suite, metric) for name in (method, "base") for metric in ("greedy", "pass")]:
        return _not_run(method)
    k = min(k, *(scores.answers(name, suite) or 0 for name in (method, "base")))
    greedy, passed = (_difference(scores, method, "base", suite, *m) for m in (("greedy", 1), ("pass", k)))
    runs = len(scores.of(method, suite).seeds)
    said = f"greedy {_signed(greedy)}, Pass@{k} {_signed(passed)} points"
    return f"{NAMES[method]} against the base {SUITES[suite]}: {said}{_runs(runs)}."


def styles(scores: ArmScores, method: str, suite: str = IN) -> str:
    """A method's style entropy beside its base's."""
    if None in [scores.answers(name, suite, "styles_nats") for name in (method, "base")]:
        return _not_run(method)
    tuned, base = (scores.of(name, suite, "styles_nats") for name in (method, "base"))
    got = interval([tuned, base], np.subtract)
    said = f"{NAMES[method]}'s style entropy within a problem is {tuned.mean:.2f} nats, the base's {base.mean:.2f}"
    return f"{said}: {_signed(got, 'nats', 1, 2)}{_runs(len(tuned.seeds))}."


def both_points(final: ArmScores, stopped: ArmScores, method: str, k: int = 8, suite: str = IN) -> str:
    """A method's Pass@k against its base at its stopping points and at the end."""
    points = {"at its stopping points": stopped, "at the end": final}
    if any(one.answers(name, suite) is None for one in points.values() for name in (method, "base")):
        return _not_run(method)
    k = min(k, *(one.answers(name, suite) or 0 for one in points.values() for name in (method, "base")))
    said = [f"{_signed(_difference(one, method, 'base', suite, 'pass', k))} {at}" for at, one in points.items()]
    runs = len(final.of(method, suite).seeds)
    return f"{_where(suite)}{NAMES[method]}'s Pass@{k} minus the base's, in points: {', '.join(said)}{_runs(runs)}."


def temperatures(of_each: Mapping[float, ArmScores], method: str, k: int = 8, against: str = "grpo") -> str:
    """A method's Pass@1 and Pass@k from the lowest temperature to the highest, and Pass@k minus another one's at each.

    Args:
        of_each: temperature -> scores of the answers drawn at it in domain, the lowest first.
    """
    there = {t: one for t, one in of_each.items() if (one.answers(method, IN) or 0) >= k}
    if not there:
        return _not_run(method)
    low, high = min(there), max(there)

    def percent(t: float, n: int) -> str:
        return f"{100 * there[t].of(method, IN, 'pass', n).mean:.1f}"

    ends = ", ".join(f"Pass@{n} {percent(low, n)} to {percent(high, n)} %" for n in (1, k))
    pairs = [t for t, one in there.items() if method != against and (one.answers(against, IN) or 0) >= k]
    apart = [f"{_signed(_difference(there[t], method, against, IN, 'pass', k))} at {t:g}" for t in pairs]
    minus = f"; Pass@{k} minus {NAMES[against]}'s, in points: {', '.join(apart)}" if apart else ""
    runs = _runs(len(there[low].of(method, IN).seeds))
    name = _the(method)
    return f"{name[0].upper()}{name[1:]} from T = {low:g} to {high:g}: {ends}{minus}{runs}."


def contents(table: pd.DataFrame, method: str, suite: str = IN) -> str:
    """A method's Pass@8 and its Pass@k at the largest k, against the base's, where problems are hidden and where hard.

    Args:
        table: `contents.content_table`.
    """
    rows = table[(table["method"] == NAMES[method]) & (table["suite"] == SUITES[suite]) & (table["k"] >= 8)]
    if rows.empty:
        return _not_run(method)
    said = []
    for held, some in rows.groupby("holds", sort=False):
        numbers = ", ".join(f"Pass@{row['k']} {_signed_row(row, 'minus base')}" for _, row in some.iterrows())
        said.append(f"{held} problems {numbers}")
    runs = _runs(int(rows["seeds"].iloc[0]))
    return f"{NAMES[method]} {SUITES[suite]}, against the base in points: {'; '.join(said)}{runs}."


def pretrained(table: pd.DataFrame, method: str, measure: str = "Pass@8", suite: str = IN) -> str:
    """A method's effect in a pretrained model and in the small one.

    Args:
        table: `pretrained.pretrained_table`.
    """
    shown = (table["method"] == NAMES[method]) & (table["suite"] == SUITES[suite]) & (table["measure"] == measure)
    rows = table[shown]
    if rows.empty:
        return _not_run(method)
    said = [f"{row['model']} {_signed_row(row, 'difference')}{_runs(row['runs'])}" for row in rows.to_dict("records")]
    minus = rows["minus"].iloc[0]
    return f"{NAMES[method]} minus {minus}, {SUITES[suite]} {measure}, in points: {'; '.join(said)}."


# --- On the way -----------------------------------------------------------------------------------


def _of_runs(rows: pd.DataFrame, column: str, bases: int, name: str) -> Scores:
    """One number per run, as the scores of a single problem: what is left to vary is the run."""
    rows = rows.sort_values("seed")
    seeds = tuple(int(seed) for seed in rows["seed"])
    values = rows[column].to_numpy(dtype=float)[:, None]
    return Scores(name, name, seeds, ("all",), values, tuple(base_of(seed, bases) for seed in seeds))


def _change(before: pd.DataFrame, after: pd.DataFrame, column: str, bases: int) -> Interval:
    """Mean change of one number of each run, between bases where there are two or more."""
    change = after.set_index("seed")[column] - before.set_index("seed")[column]
    return interval([_of_runs(change.rename("change").reset_index(), "change", bases, "change")])


def stopping(waypoints: pd.DataFrame | None, method: str, bases: int = 1) -> str:
    """When a method's main runs reach their first plateau, and what further training changes on that suite.

    Args:
        waypoints: `waypoints.waypoint_table`; None where none were measured.
        bases: number of base models, see `types.base_of`.
    """
    if waypoints is None:
        return f"{NAMES[method]}: no way-points were measured."
    rows = waypoints[(waypoints["method"] == method) & (waypoints["variant"] == "main")]
    if rows.empty:
        return _not_run(method)
    stopped = at_stopping(rows, rows)
    end = rows[rows["step"] == rows.groupby(RUN, observed=True)["step"].transform("max")]
    steps = stopped["step"]
    if set(steps) == set(end["step"]):
        return f"{NAMES[method]} reaches no plateau before the end, iteration {steps.max()}{_runs(len(stopped))}."
    when = f"iteration {steps.mean():.0f}" + (f" ({steps.min()} to {steps.max()})" if steps.nunique() > 1 else "")
    one, several = (_change(stopped, end, column, bases) for column in ("pass_1", "pass_k"))
    suite = str(rows["suite"].iloc[0]).replace("_", "-")
    said = f"Pass@1 {_signed(one)}, Pass@{K} {_signed(several)} points"
    return f"{NAMES[method]} stops at {when}; from there to the end, {suite} {said}{_runs(len(stopped))}."


def training(logs: pd.DataFrame, method: str, bases: int = 1, variant: str = "main") -> str:
    """How reward and token entropy of a method's rollouts change from the first to the last iterations.

    A sixth of the iterations at either end, at most ten. What was not logged, as vLLM logs no entropy, is left out.
    """
    rows = logs[(logs["method"] == method) & (logs["variant"] == variant)]
    if rows.empty:
        return _not_run(method)
    last = int(rows["iteration"].max())
    count = max(1, min(10, last // 6))
    kinds = {"reward": ("reward", "", 2), "entropy": ("token entropy", "nats", 3)}
    first, late = (
        rows[part].groupby("seed", as_index=False)[list(kinds)].mean()
        for part in (rows["iteration"] <= count, rows["iteration"] > last - count)
    )
    said = []
    for column, (noun, unit, digits) in kinds.items():
        if first[column].isna().any() or late[column].isna().any():
            continue
        said.append(f"{noun} {_signed(_change(first, late, column, bases), unit, 1, digits)}")
    span = f"first {count} to the last {count}" if count > 1 else "first to the last"
    if not said:
        return f"{NAMES[method]}: neither reward nor entropy was logged."
    return f"{NAMES[method]}'s rollouts from the {span} of {last} iterations: {', '.join(said)}{_runs(len(first))}."


def cost(table: pd.DataFrame) -> list[str]:
    """What an iteration passes through a reference model, and how long it takes (`studies.cost_table`)."""
    if table.empty:
        return ["The cost of an iteration was not measured."]
    ratio = table.set_index("method")["reference per policy token"]
    without = [str(name) for name, value in ratio.items() if value == 0]
    said = [f"{name} passes {value:.2f} tokens through a reference model" for name, value in ratio.items() if value > 0]
    said += [f"{_listed(without)} {'passes' if len(without) == 1 else 'pass'} none"] if without else []
    times = [f"{r.step_s:.2f} s [{r.step_s_low:.2f}, {r.step_s_high:.2f}] for {r.method}" for r in table.itertuples()]
    tokens = f"For each token through the policy, {'; '.join(said)}." if said else ""
    return [*filter(None, [tokens]), f"An iteration takes {', '.join(times)} (median and middle half)."]


# --- What is kept and lost ------------------------------------------------------------------------


def kept(split: pd.DataFrame, method: str, k: int = 8) -> str:
    """What a method kept of its base's problems and newly solved (`retention.capability_split`)."""
    rows = split.set_index("method")
    if NAMES[method] not in rows.index:
        return _not_run(method)
    row = rows.loc[NAMES[method]]
    said = f"keeps {_per_cent(row, 'keep')} of what the base solves with {k} answers"
    said += f" and newly solves {_per_cent(row, 'explore')} of the rest"
    return f"{NAMES[method]} {said}{_runs(int(row['seeds']))}."


def kept_by_chance(split: pd.DataFrame) -> str:
    """What the base itself, drawn again, solves of those problems and of the others."""
    rows = split.set_index("method")
    if AGAIN not in rows.index:
        return "The base drawn again: not known, twice as many of its answers are needed."
    row = rows.loc[AGAIN]
    return (
        f"The base, drawn again, solves {_per_cent(row, 'keep')} of them and {_per_cent(row, 'explore')} of the rest."
    )


def lost(losses: pd.DataFrame, method: str, k: int = 8) -> str:
    """What a method gained, or lost, of its base's Pass@k on each suite (`retention.losses`): a loss is negative."""
    rows = losses.set_index("method")
    if NAMES[method] not in rows.index:
        return _not_run(method)
    row = rows.loc[NAMES[method]]
    said = []
    for name in (name for name in SUITES.values() if name in row.index):
        change, low, high = (-row[f"{name}{end}"] for end in ("", "_high", "_low"))
        unclear = " (unclear)" if low <= 0 <= high else ""
        said.append(
            f"{change:+.1f} % [{low:+.1f}, {high:+.1f}]{unclear} {name}" if isfinite(change) else f"unknown {name}"
        )
    return f"{NAMES[method]}'s Pass@{k} relative to the base's: {', '.join(said)}{_runs(int(row['seeds']))}."


def reached(support: pd.DataFrame, method: str, suite: str = IN) -> str:
    """Problems that a method lost and gained at the largest k (`retention.support`), beside what is chance alone."""
    rows = support[support["suite"] == SUITES[suite]]
    rows = rows[rows["k"] == rows["k"].max()].set_index("method")
    if NAMES[method] not in rows.index:
        return _not_run(method)
    row, again = rows.loc[NAMES[method]], rows.loc[AGAIN]
    lost, gained = (f"{row[n]:.1f} [{row[f'{n}_low']:.1f}, {row[f'{n}_high']:.1f}]" for n in ("lost", "gained"))
    said = f"{NAMES[method]} loses {lost} of {row['problems']:.0f} problems and gains {gained}"
    return f"{SUITES[suite].capitalize()} with {row['k']:.0f} answers, {said}; by chance {again['lost']:.1f} of each."


# --- Ablations, studies, claims -------------------------------------------------------------------


def changes(effects: pd.DataFrame, measure: str = "Pass@8") -> list[str]:
    """What each ablation changes against its main run on each suite (`studies.effects`)."""
    said = []
    for name, part in effects.groupby("ablation", sort=False):
        known = part[part[measure].map(pd.notna)] if measure in part else part.iloc[:0]
        if known.empty:
            said.append(f"{name}: too few answers for {measure}.")
            continue
        numbers = []
        for row in known.to_dict("records"):
            low, high = row[f"{measure}_low"], row[f"{measure}_high"]
            unclear = " (unclear)" if low <= 0 <= high else ""
            numbers.append(f"{row[measure]:+.1f} [{low:+.1f}, {high:+.1f}]{unclear} {row['suite']}")
        runs = known["seeds"].iloc[0]
        few = ", too few to decide" if too_few(*map(int, runs.split(" against "))) else ""
        said.append(f"{name}: {measure} {', '.join(numbers)}, in points ({runs} runs{few}).")
    return said or ["No ablation was run."]


def largest_change(effects: pd.DataFrame, measure: str = "Pass@8") -> str:
    """The largest of the changes of `studies.effects`, and how many intervals exclude 0."""
    known = effects[effects[measure].map(pd.notna)] if measure in effects else effects.iloc[:0]
    if known.empty:
        return "No ablation was run."
    excluded = int(((known[f"{measure}_low"] > 0) | (known[f"{measure}_high"] < 0)).sum())
    most = known.loc[known[measure].astype(float).abs().idxmax()]
    ends = f"[{most[f'{measure}_low']:+.1f}, {most[f'{measure}_high']:+.1f}]"
    return (
        f"The intervals of {excluded} of {len(known)} changes in {measure} exclude 0, without correction. The largest: "
        f"{most['ablation']}, {most['suite']} {most[measure]:+.1f} {ends} points ({most['seeds']} runs)."
    )


def of_studies(table: pd.DataFrame) -> list[str]:
    """The sentences of `studies.sentences`, each after its mark (`CLEAR`, `UNCLEAR`, `NOTHING`); one for all of a
    study's comparisons that were not run."""
    said = []
    for name, part in table.groupby("study", sort=False):
        if not (part["status"] == "run").any():
            said.append(f'{NOTHING} {STUDIES[str(name)].question} Not run: ask for it with `studies = "{name}"`.')
            continue
        found = studies.sentences(part)
        made = [sentence for sentence in found if not sentence.endswith(studies.NOT_RUN)]
        said += [f"{CLEAR if ', clear (' in sentence else UNCLEAR} {sentence}" for sentence in made]
        absent = [sentence.removesuffix(studies.NOT_RUN) for sentence in found if sentence not in made]
        if len(absent) > NAMED:
            said.append(f"{NOTHING} Not run: {len(absent)} more comparisons, named in the table.")
        elif absent:
            said.append(f"{NOTHING} Not run: {'; '.join(absent)}.")
    return said


def leading(table: pd.DataFrame, most: int = 3) -> list[str]:
    """The first sentence of each of the first studies of which something was run, as of `of_studies`."""
    of_each = (of_studies(part) for _, part in table.groupby("study", sort=False))
    first = (next((one for one in said if not one.startswith(NOTHING)), "") for said in of_each)
    return list(filter(None, first))[:most] or ["No study was run."]


def chosen_weights(waypoints: pd.DataFrame | None, settings: Profile, methods: Sequence[str]) -> list[str]:
    """Which weight of each method's divergence the validation suite chooses (`weights.chosen_weight`)."""
    arms = {m: None if waypoints is None else chosen_weight(waypoints, settings, m) for m in methods}
    said = []
    for method, arm in arms.items():
        if arm is not None:
            weight = settings.method_config(RunConfig(*arm, 0)).weight
            known = "the main run's" if arm.variant == MAIN else f"and the main run has {settings.weight(method):g}"
            said.append(f"{NAMES[method]}: validation chooses the weight {weight:g}, {known}.")
    if absent := [NAMES[method] for method, arm in arms.items() if arm is None]:
        said.append(f"Not run for {_listed(absent)}: validation chooses among three weights (study `eta`).")
    return said


def claim(one: ClaimResult) -> str:
    """A claim's verdict with the effect that decided it."""
    effect = effect_text(one)
    decided = f"{one.deciding}: {effect}" if effect else one.deciding
    return f"**{one.verdict.capitalize()}**: {one.text.rstrip('.')} ({decided}{one.deciding_part.why})."


def verdicts(final: Sequence[ClaimResult], stopped: Sequence[ClaimResult]) -> list[str]:
    """How many claims have each verdict at the end and at the stopping points, then each that differs."""
    said = [f"At the end of training, {_counted(final)}."]
    if not stopped:
        return [*said, "At the stopping points: not judged, for no run was stopped."]
    said.append(f"At the stopping points, {_counted(stopped)}.")
    there = {one.id: one for one in stopped}
    for one in final:
        other = there.get(one.id)
        if other and other.verdict != one.verdict:
            said.append(f"{one.text} At the end {_decided(one)}, at the stopping points {_decided(other)}.")
    return said


def _counted(results: Sequence[ClaimResult]) -> str:
    """The first verdict that there is has the number of claims: 3 of 21 claims are supported, 2 inconclusive."""
    (most, verdict), *others = ((count, verdict) for verdict, count in verdict_counts(results).items() if count)
    first = f"{most} of {len(results)} claims {'are' if most > 1 else 'is'} {verdict}"
    return _listed([first, *(f"{count} {verdict}" for count, verdict in others)])


def _decided(one: ClaimResult) -> str:
    return " ".join(filter(None, (one.verdict, effect_text(one) and f"({effect_text(one)})")))
