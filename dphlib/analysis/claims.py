"""The paper's claims as checks on the records: supported, not supported, inconclusive, not testable or not run.

Each claim is a conjunction of directed effects, its parts. An effect is directed so that the claim says it is positive,
and has a 95 % interval over runs and problems (`intervals`). Lower bound above 0, or above -tolerance where the claim
is "not worse": supported. Upper bound at or below 0, or below -tolerance: not supported. Otherwise inconclusive. An
arm, a suite or enough samples absent: not run. A trained arm with fewer than three seeds: inconclusive. Where the base
model's own numbers leave no room for the claim to show, it is not testable, whatever the arms did.

One part not supported refutes the claim, all supported support it, else it is not run where a part is, or inconclusive.
On the smoke profiles nothing is settled: such a claim is inconclusive. Texts and tolerances were fixed before the runs
to which they are applied; docs/method.md says what else the rule implies.

A verdict `holds_jointly` if Holm's correction over the parts of all headline claims leaves it as it is: the chance of
even one wrong verdict among them, for or against, is then below 5 %.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from math import isfinite, log
from typing import IO, Any, Literal, get_args

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dphlib import stats
from dphlib.analysis.labels import NAMES
from dphlib.intervals import holm, interval
from dphlib.scores import ArmScores
from dphlib.settings.profiles import PROFILES
from dphlib.settings.variants import MAIN, reading

Decision = Literal["supported", "not supported", "inconclusive", "not testable", "not run"]
VERDICTS: tuple[Decision, ...] = get_args(Decision)
SYMBOLS: dict[Decision, str] = dict(zip(VERDICTS, "✔✘○⊘–", strict=True))
"""Before a verdict in a table: its shape says it without a colour."""
IN, CROSS, OUT = "in_domain", "cross_domain", "out_of_domain"
DPH, BASELINES = ("dph_f", "dph_js"), ("grpo", "dapo", "rkl")
MIN_SEEDS = 3
HOLDS, OPEN = "holds", "open"
LARGE = 0  # as a k: the largest of LARGE_KS that the answers allow
LARGE_KS = (64, 32, 16)

TIE = 0.02
"""Two points. In Table 1 DPH-F's greedy is 0.4 points above DAPO's and RKL's, and the two forms of Table 5
differ by up to 1.6; of about a hundred problems it is two. The spread over seeds was not known then."""
ROOM = (0.10, 0.95)
"""Between these the base's Pass@8 leaves room for a loss to show: below there is nothing to lose, and above, nearly
every problem falls to any 8 answers, so that nothing can be lost before the policy has collapsed."""
ONE_STYLE_NATS = log(2)
"""Below the entropy of two styles in equal use fewer than two are left in effect."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """Mean over problems of greedy accuracy, Pass@k or style entropy of a method's final models."""

    method: str
    suite: str
    metric: stats.Metric = "pass"
    k: int = 1
    variant: str = "main"

    @property
    def name(self) -> str:
        return NAMES[self.method] + (f" ({reading(self.variant)})" if self.variant != MAIN else "")

    @property
    def measure(self) -> str:
        passed = "Pass at large k" if self.k == LARGE else f"Pass@{self.k}"
        metric = {"greedy": "greedy", "pass": passed, "styles_nats": "style entropy"}[self.metric]
        return f"{self.suite.replace('_', '-')} {metric}"


@dataclass(frozen=True, slots=True)
class Part:
    """One directed effect: `effect(*means of the quantities)` is positive if the claim holds."""

    label: str
    quantities: tuple[Quantity, ...]
    effect: Callable[..., Any]
    tolerance: float = 0.0


@dataclass(frozen=True, slots=True)
class PartResult:
    """What the records say of one part; `estimate`, `low`, `high` are None where it was not run.

    `p` is the two-sided probability of such an estimate if the truth were at -tolerance; None where nothing is random.
    """

    label: str
    verdict: Decision
    unit: str
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    tolerance: float = 0.0
    per_seed: tuple[tuple[int, float], ...] = ()
    p: float | None = None
    reason: str = ""

    @property
    def why(self) -> str:
        """The reason in brackets, "" where there is none."""
        return f" ({self.reason})" if self.reason else ""

    def __str__(self) -> str:
        if self.estimate is None:
            return self.label + self.why
        estimate, low, high, unit = _in_words(self)
        seeds = f"{len(self.per_seed)} seed{'s' if len(self.per_seed) != 1 else ''}"
        return f"{self.label}: {estimate} [{low}, {high}] {unit}, {seeds}{self.why}"


@dataclass(frozen=True, slots=True)
class Evidence:
    """The scores at one point of training, and the train logs, None where there are none."""

    scores: ArmScores
    train_logs: pd.DataFrame | None
    level: float = 0.95


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of the paper.

    Args:
        id: short name, the same in files and README.
        text: what is claimed, with the measure that is used here.
        paper_ref: where it comes from.
        check: evidence -> results of the parts, all of which must hold.
        testable: evidence -> why the base's own numbers show that it cannot be decided, "" if it can; None: it always
            can.
        headline: whether it is one of those that are judged together.
    """

    id: str
    text: str
    paper_ref: str
    check: Callable[[Evidence], list[PartResult]]
    testable: Callable[[Evidence], str] | None = None
    headline: bool = False


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """A claim with its verdict. The numbers are those of the part that decided, the weakest, labelled `deciding`.

    `holds_jointly`: whether the verdict is the same with Holm's correction; None for a claim that is no headline.
    """

    id: str
    text: str
    paper_ref: str
    verdict: Decision
    unit: str
    estimate: float | None
    low: float | None
    high: float | None
    per_seed: tuple[tuple[int, float], ...]
    parts: tuple[PartResult, ...]
    deciding: str
    detail: str
    holds_jointly: bool | None = None

    @property
    def deciding_part(self) -> PartResult:
        return next(part for part in self.parts if part.label == self.deciding)


# ---------------------------------------------------------------------------------------------- the rule


def rule(low: float, high: float, tolerance: float = 0.0) -> Decision:
    """Verdict of an interval.

    >>> rule(-0.01, 0.05), rule(-0.01, 0.05, tolerance=0.02)
    ('inconclusive', 'supported')
    """
    if low > -tolerance:
        return "supported"
    return "not supported" if high < -tolerance or (tolerance == 0 and high <= 0) else "inconclusive"


def combine(verdicts: Sequence[Decision]) -> Decision:
    """Verdict of a conjunction: a part not supported refutes it, else one not run or inconclusive decides.

    >>> combine(["supported", "inconclusive"])
    'inconclusive'
    """
    return next(v for v in ("not supported", "not run", "not testable", "inconclusive", "supported") if v in verdicts)


def decide(part: Part, evidence: Evidence) -> PartResult:
    """The module's rule applied to one part, at least one of whose quantities is of a trained method."""
    unit = "nats" if part.quantities[0].metric == "styles_nats" else "share"
    result = PartResult(part.label, "not run", unit, tolerance=part.tolerance)
    scores = evidence.scores
    answers = {q: scores.answers(q.method, q.suite, q.metric, q.variant) for q in part.quantities}
    absent = sorted({f"{q.name}, {q.measure}" for q, n in answers.items() if n is None})
    if absent:
        return replace(result, reason=f"no records of {'; '.join(absent)}")
    fewest = min(n for n in answers.values() if n is not None)
    large = next((k for k in LARGE_KS if k <= fewest), LARGE_KS[-1])
    ks = {q: large if q.k == LARGE else q.k for q in part.quantities}
    if max(ks.values()) > fewest:
        return replace(result, reason=f"needs {max(ks.values())} judged answers per problem, there are {fewest}")
    found = [scores.of(q.method, q.suite, q.metric, ks[q], q.variant) for q in part.quantities]
    with np.errstate(divide="ignore", invalid="ignore"):
        got = interval(found, part.effect, level=evidence.level)
    if not all(map(isfinite, (got.estimate, got.low, got.high))):
        return replace(result, verdict="inconclusive", reason="the base solves too little to lose a share of it")
    result = replace(
        result,
        label=part.label.replace("Pass at large k", f"Pass@{large}"),
        verdict=rule(got.low, got.high, part.tolerance),
        estimate=got.estimate,
        low=got.low,
        high=got.high,
        per_seed=got.per_seed,
        p=got.p_of(-part.tolerance),
    )
    seeds = min(len(one.seeds) for one, q in zip(found, part.quantities, strict=True) if q.method != "base")
    return _with_enough_seeds(result, seeds)


def too_few(*runs: Any) -> Any:
    """Whether an arm has fewer runs than decide anything, `MIN_SEEDS`: then no effect on it is clear.

    Args:
        runs: number of runs of each trained arm; columns of a table give a column.

    >>> bool(too_few(3, 18)), bool(too_few(3, 2))
    (False, True)
    """
    return reduce(np.minimum, runs) < MIN_SEEDS


def _with_enough_seeds(result: PartResult, seeds: int) -> PartResult:
    """The result, inconclusive where it is of `too_few` seeds."""
    if not too_few(seeds):
        return result
    return replace(result, verdict="inconclusive", p=None, reason=f"too few seeds: {seeds}, {MIN_SEEDS} are needed")


# ---------------------------------------------------------------------------------------------- the claims


def above(a: Quantity, b: Quantity, tolerance: float = 0.0) -> Part:
    """a is greater than b, or not worse by more than the tolerance."""
    sign, less = (">", "") if tolerance == 0 else (">=", f" less {100 * tolerance:g} points")
    return Part(f"{a.name} {sign} {b.name}{less}, {a.measure}", (a, b), lambda x, y: x - y, tolerance)


def all_above(
    methods: Sequence[str],
    others: Sequence[str],
    suite: str,
    metric: stats.Metric = "pass",
    ks: Sequence[int] = (1,),
    tolerance: float = 0.0,
) -> list[Part]:
    """Every one of `methods` above every one of `others`, at each k."""
    return [
        above(Quantity(a, suite, metric, k), Quantity(b, suite, metric, k), tolerance)
        for a in methods
        for b in others
        for k in ks
    ]


def _few_styles(method: str) -> Part:
    label = f"{NAMES[method]} has fewer than two styles left in effect, in-domain style entropy < ln 2"
    return Part(label, (Quantity(method, IN, "styles_nats"),), lambda x: ONE_STYLE_NATS - x)


def _loss_grows(method: str, near: str, far: str) -> Part:
    """Share of the base's Pass@8 lost is greater on `far`: (1 - m_far/b_far) - (1 - m_near/b_near) > 0."""
    quantities = tuple(Quantity(m, suite, "pass", 8) for suite in (near, far) for m in (method, "base"))
    label = f"{NAMES[method]}: share of Pass@8 lost, {far.replace('_', '-')} > {near.replace('_', '-')}"
    return Part(label, quantities, lambda m_near, b_near, m_far, b_far: m_near / b_near - m_far / b_far)


def _no_reference_model(evidence: Evidence) -> list[PartResult]:
    """Tokens through an online reference model per policy token: 0 for DPH in every seed, above 0 for RKL."""
    return [_reference_tokens(method, evidence.train_logs) for method in (*DPH, "rkl")]


def _reference_tokens(method: str, logs: pd.DataFrame | None) -> PartResult:
    label = f"{NAMES[method]}: tokens through an online reference model {'> 0' if method == 'rkl' else '= 0'}"
    result = PartResult(label, "not run", "reference tokens per policy token")
    rows = None if logs is None else logs[(logs["method"] == method) & (logs["variant"] == "main")]
    if rows is None or rows.empty:
        return replace(result, reason=f"no train logs of {NAMES[method]}")
    total = rows.groupby("seed")[["reference_tokens", "policy_tokens"]].sum().sort_index()
    if (total["policy_tokens"] <= 0).any():
        return replace(result, reason=f"a seed of {NAMES[method]} learnt from no row, so no token was passed")
    ratio = total["reference_tokens"] / total["policy_tokens"]
    holds = (ratio > 0).all() if method == "rkl" else (ratio == 0).all()
    result = replace(
        result,
        verdict="supported" if holds else "not supported",
        estimate=float(ratio.mean()),
        low=float(ratio.min()),
        high=float(ratio.max()),
        per_seed=tuple((int(seed), float(value)) for seed, value in ratio.items()),
    )
    return _with_enough_seeds(result, len(ratio))


def base_has_room(*suites: str, k: int = 8) -> Callable[[Evidence], str]:
    """A `testable` of claims about a loss of Pass@k: whether the base models' mean is within `ROOM` on every suite."""

    def reason(evidence: Evidence) -> str:
        said = []
        for suite in suites:
            if (evidence.scores.answers("base", suite) or 0) < k:
                continue  # not run
            passed = evidence.scores.of("base", suite, "pass", k).mean
            if not ROOM[0] <= passed <= ROOM[1]:
                bound = f"below {100 * ROOM[0]:g} %" if passed < ROOM[0] else f"above {100 * ROOM[1]:g} %"
                said.append(f"the base's {suite.replace('_', '-')} Pass@{k} is {100 * passed:.1f} %, {bound}")
        return "; ".join(said)

    return reason


def _claim(
    name: str,
    text: str,
    paper_ref: str,
    *parts: Part,
    testable: Callable[[Evidence], str] | None = None,
    headline: bool = False,
) -> Claim:
    return Claim(name, text, paper_ref, lambda evidence: [decide(part, evidence) for part in parts], testable, headline)


BASE = ("base",)
GRPO_DAPO = ("grpo", "dapo")
RKL = ("rkl",)
JS = ("dph_js",)
BY_DEFINITION = ("dph_js_definition",)
CLAIMS: tuple[Claim, ...] = (
    _claim(
        "greedy_rises",
        "GRPO and DAPO raise in-domain greedy accuracy above the base model's.",
        "Table 1",
        *all_above(GRPO_DAPO, BASE, IN, "greedy"),
    ),
    _claim(
        "pass_k_falls",
        "GRPO's and DAPO's in-domain Pass@8 and Pass@16 fall below the base model's.",
        "Table 1",
        *all_above(BASE, GRPO_DAPO, IN, ks=(8, 16)),
        testable=base_has_room(IN),
        headline=True,
    ),
    _claim(
        "pass_16_falls_rkl",
        "RKL's in-domain Pass@16 falls below the base model's too.",
        "Table 1",
        *all_above(BASE, RKL, IN, ks=(16,)),
        testable=base_has_room(IN),
    ),
    _claim(
        "grpo_keeps_one_style",
        "GRPO keeps almost one style: its style entropy falls below the base's, and below ln 2.",
        "Figure 4",
        *all_above(BASE, ("grpo",), IN, "styles_nats"),
        _few_styles("grpo"),
    ),
    _claim(
        "dph_keeps_styles",
        "DPH-F and DPH-JS keep more styles than GRPO: their style entropy is greater.",
        "Figure 4",
        *all_above(DPH, ("grpo",), IN, "styles_nats"),
    ),
    _claim(
        "dph_greedy_highest",
        "DPH-F and DPH-JS have the highest in-domain greedy accuracy: neither is more than two points below "
        "GRPO, DAPO or RKL.",
        "Table 1",
        *all_above(DPH, BASELINES, IN, "greedy", tolerance=TIE),
    ),
    _claim(
        "js_pass_8_above_grpo",
        "DPH-JS's in-domain Pass@8 is above GRPO's.",
        "Table 1",
        *all_above(JS, ("grpo",), IN, ks=(8,)),
        headline=True,
    ),
    _claim(
        "dph_nearer_at_large_k",
        "At large k (the largest of 16, 32, 64 that was drawn) DPH-F and DPH-JS lie nearer to the base than "
        "GRPO, or above it: their in-domain Pass@k is greater.",
        "Figure 2",
        *all_above(DPH, ("grpo",), IN, ks=(LARGE,)),
        headline=True,
    ),
    _claim(
        "cross_every_rl_loses",
        "Cross domain every RL model loses Pass@8 against the base.",
        "Table 1",
        *all_above(BASE, (*BASELINES, *DPH), CROSS, ks=(8,)),
        testable=base_has_room(CROSS),
    ),
    _claim(
        "cross_dph_loses_least",
        "Cross domain DPH-F and DPH-JS lose less Pass@8 than GRPO, DAPO and RKL.",
        "Table 1",
        *all_above(DPH, BASELINES, CROSS, ks=(8,)),
        testable=base_has_room(CROSS),
        headline=True,
    ),
    _claim(
        "out_every_rl_loses",
        "Out of domain every RL model loses Pass@8 against the base.",
        "Table 2",
        *all_above(BASE, (*BASELINES, *DPH), OUT, ks=(8,)),
        testable=base_has_room(OUT),
    ),
    _claim(
        "out_dph_loses_least",
        "Out of domain DPH-F and DPH-JS lose less Pass@8 than GRPO, DAPO and RKL.",
        "Table 2",
        *all_above(DPH, BASELINES, OUT, ks=(8,)),
        testable=base_has_room(OUT),
        headline=True,
    ),
    _claim(
        "out_rkl_loses_most",
        "Out of domain RKL loses more Pass@8 than GRPO and DAPO.",
        "Table 2",
        *all_above(GRPO_DAPO, RKL, OUT, ks=(8,)),
        testable=base_has_room(OUT),
    ),
    _claim(
        "loss_grows_with_shift",
        "The share of the base's Pass@8 that GRPO and RKL lose grows with the shift: in domain, cross "
        "domain, out of domain.",
        "Tables 1 and 2",
        *(_loss_grows(m, near, far) for m in ("grpo", "rkl") for near, far in ((IN, CROSS), (CROSS, OUT))),
        testable=base_has_room(IN, CROSS, OUT),
    ),
    _claim(
        "forward_keeps_more_than_reverse",
        "On the same stored answers and at equal strength forward KL keeps more than reverse KL: DPH-F's in-domain and "
        "cross-domain Pass@8 are above DPH-RKL's.",
        "abstract",
        *all_above(("dph_f",), ("dph_rkl",), IN, ks=(8,)),
        *all_above(("dph_f",), ("dph_rkl",), CROSS, ks=(8,)),
        headline=True,
    ),
    _claim(
        "dph_above_reverse_gradient",
        "DPH-F's and DPH-JS's in-domain Pass@8 are above RKL's at equal strength, also where its gradient is reverse "
        "KL's (k2).",
        "Table 1",
        *all_above(DPH, ("rkl", "rkl_k2"), IN, ks=(8,)),
    ),
    _claim(
        "rehearsal_beyond_selection",
        "DPH-F's and DPH-JS's in-domain Pass@8 are above that of GRPO on D_exp at the same clip: it is not the "
        "selection of the prompts alone.",
        "ours",
        *(above(Quantity(m, IN, k=8), Quantity("grpo_dexp", IN, k=8, variant="clip_high=0.28")) for m in DPH),
    ),
    _claim(
        "partition_costs_nothing",
        "With the partition DPH-F is no more than two points worse in in-domain greedy accuracy and Pass@8 than when "
        "it explores and rehearses all prompts.",
        "ours",
        *all_above(("dph_f",), ("dph_f_all",), IN, "greedy", tolerance=TIE),
        *all_above(("dph_f",), ("dph_f_all",), IN, ks=(8,), tolerance=TIE),
        headline=True,
    ),
    Claim(
        "no_reference_model",
        "DPH-F and DPH-JS train without an online reference model; RKL needs one.",
        "abstract",
        _no_reference_model,
    ),
    _claim(
        "generator_as_good_as_definition",
        "DPH-JS by its generator, from stored answers alone, and by definition lie within two points in "
        "in-domain greedy accuracy and Pass@16.",
        "Table 5",
        *all_above(JS, BY_DEFINITION, IN, "greedy", tolerance=TIE),
        *all_above(BY_DEFINITION, JS, IN, "greedy", tolerance=TIE),
        *all_above(JS, BY_DEFINITION, IN, ks=(16,), tolerance=TIE),
        *all_above(BY_DEFINITION, JS, IN, ks=(16,), tolerance=TIE),
    ),
    _claim(
        "threshold_8_as_good_as_6",
        "A partition at 8 of 8 is no more than two points worse than at 6 of 8, in in-domain greedy accuracy "
        "and Pass@8 of DPH-F and DPH-JS.",
        "Table 4",
        *(
            above(Quantity(m, IN, metric, k, "threshold=8"), Quantity(m, IN, metric, k), TIE)  # type: ignore[arg-type]
            for m in DPH
            for metric, k in (("greedy", 1), ("pass", 8))
        ),
    ),
)


# ---------------------------------------------------------------------------------------------- verdicts


def evaluate_claims(
    scores: ArmScores,
    train_logs: pd.DataFrame | None,
    profile: str,
    claims: Sequence[Claim] = CLAIMS,
    level: float = 0.95,
) -> list[ClaimResult]:
    """Every claim's verdict at one point of training, from the scores there and, for the cost, the train logs.

    Args:
        scores: `ArmScores.final(records)` for the end of training, `ArmScores(rows)` for rows of another step per run.
        train_logs: one row per iteration: method, variant, seed, reference_tokens, policy_tokens; or None.
        profile: of `settings.profiles.PROFILES`, the one that wrote the records.
        claims: which to decide.
        level: of the intervals that decide; 1 - level is the chance of an error that Holm's correction keeps.

    Raises ValueError for an unknown profile and for arms that must not be compared.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile {profile!r}: one of {', '.join(PROFILES)}")
    logs = None if train_logs is None or train_logs.empty else train_logs
    evidence = Evidence(scores, logs, level)
    of_claims = [_parts(claim, evidence, profile) for claim in claims]
    judged = [part for claim, parts in zip(claims, of_claims, strict=True) if claim.headline for part in parts]
    corrected = holm([np.nan if part.p is None else part.p for part in judged]) < 1 - level
    certain = {id(part) for part, holds in zip(judged, corrected, strict=True) if holds or part.p is None}
    return [_result(claim, parts, certain) for claim, parts in zip(claims, of_claims, strict=True)]


def _parts(claim: Claim, evidence: Evidence, profile: str) -> list[PartResult]:
    """What the records say of a claim's parts, all of them undecided where the profile or the base cannot decide."""
    parts = claim.check(evidence)
    if profile.endswith("smoke"):
        return [_undecided(part, "inconclusive", f"{profile} profile") for part in parts]
    reason = claim.testable(evidence) if claim.testable else ""
    return [_undecided(part, "not testable", reason) for part in parts] if reason else parts


def _undecided(part: PartResult, verdict: Decision, reason: str) -> PartResult:
    """The part with another verdict, unless it was not run; it is no test then, so it has no p."""
    return part if part.verdict == "not run" else replace(part, verdict=verdict, p=None, reason=reason)


def _result(claim: Claim, parts: Sequence[PartResult], certain: set[int]) -> ClaimResult:
    """The claim's result; `certain` are the ids of the parts that hold jointly."""
    verdict = combine([part.verdict for part in parts])
    weakest = _weakest(parts, verdict)
    held = sum(part.verdict == "supported" for part in parts)
    detail = f"{held} of {len(parts)} parts supported; decided by: {weakest}."
    decided = ("supported", "not supported")
    jointly = [p.verdict if id(p) in certain or p.verdict not in decided else "inconclusive" for p in parts]
    numbers = (weakest.unit, weakest.estimate, weakest.low, weakest.high, weakest.per_seed)
    of_claim = (claim.id, claim.text, claim.paper_ref, verdict, *numbers, tuple(parts), weakest.label, detail)
    return ClaimResult(*of_claim, combine(jointly) == verdict if claim.headline else None)


def _weakest(parts: Sequence[PartResult], verdict: Decision) -> PartResult:
    """The part that decided: of those with the claim's verdict, the one whose interval reaches lowest."""
    of_verdict = [part for part in parts if part.verdict == verdict]
    return min(of_verdict, key=lambda p: float("inf") if p.low is None else p.low + p.tolerance)


# ---------------------------------------------------------------------------------------------- writing


def effect_text(one: ClaimResult | PartResult) -> str:
    """Estimate and interval of a claim or of a part of one, in points where it is a share; "" where it was not run.

    >>> effect_text(PartResult("DPH-F > GRPO", "supported", "share", 0.043, 0.01, 0.076))
    '4.3 points [1.0, 7.6]'
    """
    if one.estimate is None:
        return ""
    estimate, low, high, unit = _in_words(one)
    return f"{estimate} {unit} [{low}, {high}]"


def joint_text(one: ClaimResult) -> str:
    """Whether a decided verdict holds with all headline claims judged at once: `HOLDS`, `OPEN`, or "-"."""
    if one.holds_jointly is None or one.verdict not in ("supported", "not supported"):
        return "-"
    return HOLDS if one.holds_jointly else OPEN


def both_points(final: Sequence[ClaimResult], stopped: Sequence[ClaimResult]) -> pd.DataFrame:
    """One row per claim: verdict and effect that decided, at the end of training and at the stopping points.

    Args:
        stopped: () where no run was stopped.
    """
    there = {one.id: one for one in stopped}
    rows = []
    for one in sorted(final, key=lambda result: VERDICTS.index(result.verdict)):
        row = {"claim": f"**{one.text}**" if one.holds_jointly is not None else one.text, "paper": one.paper_ref}
        row |= {"at the end": _verdict_text(one), "effect that decided": effect_text(one) or "-"}
        row["all at once"] = joint_text(one)
        other = there.get(one.id)
        row["at the stopping points"] = _verdict_text(other) if other else "-"
        rows.append(row | {"its effect": effect_text(other) or "-" if other else "-"})
    return pd.DataFrame(rows)


def _verdict_text(one: ClaimResult) -> str:
    return f"{SYMBOLS[one.verdict]} {one.verdict}"


def _in_words(one: ClaimResult | PartResult) -> tuple[str, ...]:
    """Estimate, low, high and unit: shares in points, else as they are."""
    scale, digits, unit = (100, 1, "points") if one.unit == "share" else (1, 2, one.unit)
    numbers = (round(scale * value, digits) + 0.0 for value in (one.estimate, one.low, one.high))  # type: ignore[operator]
    return (*(f"{number:.{digits}f}" for number in numbers), unit)


def to_json(results: Sequence[ClaimResult]) -> str:
    """Canonical JSON, sorted keys, six decimals: the same results give the same bytes."""
    rows = [_rounded(asdict(result)) for result in results]
    return json.dumps(rows, sort_keys=True, indent=1, allow_nan=False) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, 6) + 0.0 if isinstance(value, float) else value


def from_json(text: str) -> list[ClaimResult]:
    """What `to_json` wrote, as results again; a file of an earlier version, which lacks fields, is read too."""

    def seeds(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "per_seed": tuple(map(tuple, row["per_seed"]))}

    results = []
    for row in json.loads(text):
        parts = tuple(PartResult(**seeds(part)) for part in row["parts"])
        deciding = row.get("deciding") or _weakest(parts, row["verdict"]).label
        results.append(ClaimResult(**{**seeds(row), "parts": parts, "deciding": deciding}))
    return results


def verdict_counts(results: Sequence[ClaimResult]) -> dict[str, int]:
    """How many claims each verdict has, also those that none has."""
    return {verdict: sum(one.verdict == verdict for one in results) for verdict in VERDICTS}


def print_table(results: Sequence[ClaimResult], file: IO[str] | None = None) -> None:
    """The verdicts as a table for a terminal; the effect is that of the part that decided."""
    table = Table(title="Claims: 95 % interval over runs and problems of the effect that decided", show_lines=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("all at once", no_wrap=True)
    table.add_column("claim", ratio=3)
    table.add_column("decided by", ratio=3)
    colours = dict(zip(VERDICTS, ("green", "red", "yellow", "blue", "bright_black"), strict=True))
    for one in results:
        claim, part = f"{one.text} [dim]({one.paper_ref})[/]", f"{one.deciding_part}."
        table.add_row(f"[{colours[one.verdict]}]{one.verdict}[/]", joint_text(one), claim, escape(part))
    console = Console(file=file, width=100)
    console.print(table)
    console.print(", ".join(f"{count} {verdict}" for verdict, count in verdict_counts(results).items()))
