"""The paper's claims as checks on the records: supported, not supported, inconclusive or not run.

Each claim is a conjunction of directed effects; the rule that judges one is in `judge`. One part not
supported refutes the claim, all supported support it, else it is not run where a part is, or inconclusive.
On a profile smaller than the claim's own (the smoke profiles) nothing is settled: such a claim is inconclusive.

1. The cost claim counts tokens, never seconds: a verdict must not depend on the machine. Counts have no
   interval; low and high are the range over seeds.
2. Intervals are not corrected for the number of claims; every part is shown so that a reader can. Within a claim there
   is nothing to correct: all its parts must hold. Across claims `level` widens the intervals; docs/findings.md has the
   verdicts at 1 - 0.05 / (number of claims).
3. Where the source gives an order without a measure, the claim's text names the one used here.

Texts and tolerances were fixed before the runs that they judge. It trains and plots nothing and reads no
file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import log
from typing import IO, Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dphlib import stats
from dphlib.analysis.judge import (
    LARGE,
    Evidence,
    Judgement,
    Part,
    PartResult,
    Quantity,
    above,
    all_above,
    combine,
    judge,
    with_enough_seeds,
)
from dphlib.analysis.labels import NAMES

PROFILES = ("smoke", "gpu24-smoke", "gpu80-smoke", "paper-smoke", "cpu", "gpu24", "gpu80", "paper")  # by size
IN, CROSS, OUT = "in_domain", "cross_domain", "out_of_domain"
DPH, BASELINES = ("dph_f", "dph_js"), ("grpo", "dapo", "rkl")

TIE = 0.02
"""Two points. In Table 1 DPH-F's greedy is 0.4 points above DAPO's and RKL's, and the two forms of Table 5
differ by up to 1.6; of about a hundred problems it is two. The spread over seeds was not known then."""
ONE_STYLE_NATS = log(2)
"""Below the entropy of two styles in equal use fewer than two are left in effect."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of the paper.

    Args:
        id: short name, the same in files and README.
        text: what is claimed, with the measure that is used here.
        paper_ref: where it comes from.
        profile: the smallest profile that can settle it.
        check: evidence -> results of the parts, all of which must hold.
        tolerance: the largest that its parts use, a share of problems; 0 where the effect must be above 0.
    """

    id: str
    text: str
    paper_ref: str
    profile: str
    check: Callable[[Evidence], list[PartResult]]
    tolerance: float = 0.0


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """A claim with its verdict; the numbers are those of the part that decided, the weakest one."""

    id: str
    text: str
    paper_ref: str
    verdict: Judgement
    unit: str
    estimate: float | None
    low: float | None
    high: float | None
    per_seed: tuple[tuple[int, float], ...]
    parts: tuple[PartResult, ...]
    detail: str


def _parts(*parts: Part) -> Callable[[Evidence], list[PartResult]]:
    return lambda evidence: [judge(part, evidence) for part in parts]


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
    out, logs = [], evidence.train_logs
    for method in (*DPH, "rkl"):
        label = f"{NAMES[method]}: tokens through an online reference model {'> 0' if method == 'rkl' else '= 0'}"
        result = PartResult(label, "not run", "reference tokens a policy token")
        rows = None if logs is None else logs[(logs["method"] == method) & (logs["variant"] == "main")]
        if rows is None or rows.empty:
            out.append(replace(result, reason=f"no train logs of {NAMES[method]}"))
            continue
        total = rows.groupby("seed")[["reference_tokens", "policy_tokens"]].sum().sort_index()
        if (total["policy_tokens"] <= 0).any():
            out.append(replace(result, reason=f"a seed of {NAMES[method]} learnt from no row, so no token was passed"))
            continue
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
        out.append(with_enough_seeds(result, len(ratio)))
    return out


def _claim(name: str, text: str, paper_ref: str, *parts: Part) -> Claim:
    return Claim(name, text, paper_ref, "cpu", _parts(*parts), max(part.tolerance for part in parts))


BASE, GRPO_DAPO, RKL, JS, BY_DEFINITION = (
    ("base",),
    ("grpo", "dapo"),
    ("rkl",),
    ("dph_js",),
    ("dph_js_definition",),
)
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
    ),
    _claim(
        "pass_16_falls_rkl",
        "RKL's in-domain Pass@16 falls below the base model's too.",
        "Table 1",
        *all_above(BASE, RKL, IN, ks=(16,)),
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
    ),
    _claim(
        "dph_nearer_at_large_k",
        "At large k (the largest of 16, 32, 64 that was drawn) DPH-F and DPH-JS lie nearer to the base than "
        "GRPO, or above it: their in-domain Pass@k is greater.",
        "Figure 2",
        *all_above(DPH, ("grpo",), IN, ks=(LARGE,)),
    ),
    _claim(
        "cross_every_rl_loses",
        "Cross domain every RL model loses Pass@8 against the base.",
        "Table 1",
        *all_above(BASE, (*BASELINES, *DPH), CROSS, ks=(8,)),
    ),
    _claim(
        "cross_dph_loses_least",
        "Cross domain DPH-F and DPH-JS lose less Pass@8 than GRPO, DAPO and RKL.",
        "Table 1",
        *all_above(DPH, BASELINES, CROSS, ks=(8,)),
    ),
    _claim(
        "out_every_rl_loses",
        "Out of domain every RL model loses Pass@8 against the base.",
        "Table 2",
        *all_above(BASE, (*BASELINES, *DPH), OUT, ks=(8,)),
    ),
    _claim(
        "out_dph_loses_least",
        "Out of domain DPH-F and DPH-JS lose less Pass@8 than GRPO, DAPO and RKL.",
        "Table 2",
        *all_above(DPH, BASELINES, OUT, ks=(8,)),
    ),
    _claim(
        "out_rkl_loses_most",
        "Out of domain RKL loses more Pass@8 than GRPO and DAPO.",
        "Table 2",
        *all_above(GRPO_DAPO, RKL, OUT, ks=(8,)),
    ),
    _claim(
        "loss_grows_with_shift",
        "The share of the base's Pass@8 that GRPO and RKL lose grows with the shift: in domain, cross "
        "domain, out of domain.",
        "Tables 1 and 2",
        *(_loss_grows(m, near, far) for m in ("grpo", "rkl") for near, far in ((IN, CROSS), (CROSS, OUT))),
    ),
    Claim(
        "no_reference_model",
        "DPH-F and DPH-JS train without an online reference model; RKL needs one.",
        "abstract",
        "cpu",
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


def evaluate_claims(
    records: pd.DataFrame,
    train_logs: pd.DataFrame | None,
    profile: str,
    rng_seed: int = 0,
    claims: Sequence[Claim] = CLAIMS,
    level: float = 0.95,
) -> list[ClaimResult]:
    """Every claim's verdict from the records and, for the cost, the train logs.

    Args:
        records: frame of EvalRecord rows; each run's last step is judged.
        train_logs: one row an iteration: method, variant, seed, reference_tokens, policy_tokens; or None.
        profile: of `PROFILES`, the one that wrote the records.
        rng_seed: of the bootstrap; the same records and seed give the same results.
        claims: which to judge.
        level: of the intervals that decide.

    Raises ValueError for an unknown profile and for arms that must not be compared.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile {profile!r}: one of {', '.join(PROFILES)}")
    rows = stats.final(records)
    tables = [stats.problem_table(part) if len(part) else None for part in (stats.greedy(rows), stats.sampled(rows))]
    logs = None if train_logs is None or train_logs.empty else train_logs
    evidence = Evidence(*tables, logs, rng_seed, level)  # type: ignore[arg-type, call-arg]
    return [_result(claim, evidence, profile) for claim in claims]


def _result(claim: Claim, evidence: Evidence, profile: str) -> ClaimResult:
    parts = claim.check(evidence)
    if PROFILES.index(profile) < PROFILES.index(claim.profile):
        parts = [
            p if p.verdict == "not run" else replace(p, verdict="inconclusive", reason=f"{profile} profile")
            for p in parts
        ]
    verdict = combine([part.verdict for part in parts])
    of_verdict = [part for part in parts if part.verdict == verdict]
    decided = min(of_verdict, key=lambda p: float("inf") if p.low is None else p.low + p.tolerance)
    held = sum(part.verdict == "supported" for part in parts)
    numbers = "" if decided.estimate is None else f": {_effect(decided)}, {len(decided.per_seed)} seeds"
    why = f" ({decided.reason})" if decided.reason else ""
    detail = f"{held} of {len(parts)} parts supported; decided by: {decided.label}{numbers}{why}."
    return ClaimResult(
        claim.id, claim.text, claim.paper_ref, verdict, decided.unit, decided.estimate, decided.low,
        decided.high, decided.per_seed, tuple(parts), detail,
    )  # fmt: skip


def _effect(part: PartResult) -> str:
    """The numbers as a reader wants them, of a part that was run: shares in points, else as they are."""
    scale, digits, unit = (100, 1, " points") if part.unit == "share" else (1, 2, f" {part.unit}")
    values = (f"{round(scale * x, digits) + 0.0:.{digits}f}" for x in (part.estimate, part.low, part.high))  # type: ignore[operator]
    return "{} [{}, {}]".format(*values) + unit


def to_json(results: Sequence[ClaimResult]) -> str:
    """Canonical JSON, sorted keys, six decimals: the same results give the same bytes."""
    return (
        json.dumps([_rounded(asdict(result)) for result in results], sort_keys=True, indent=1, allow_nan=False) + "\n"
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, 6) + 0.0 if isinstance(value, float) else value


def from_json(text: str) -> list[ClaimResult]:
    """What `to_json` wrote, as results again."""

    def seeds(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "per_seed": tuple(map(tuple, row["per_seed"]))}

    return [
        ClaimResult(**{**seeds(row), "parts": tuple(PartResult(**seeds(part)) for part in row["parts"])})
        for row in json.loads(text)
    ]


def to_frame(results: Sequence[ClaimResult]) -> pd.DataFrame:
    """One row a part: claim, claim_verdict, part, verdict, unit, estimate, low, high, tolerance, reason."""
    rows = [
        {
            "claim": r.id,
            "claim_verdict": r.verdict,
            "part": p.label,
            **{k: v for k, v in asdict(p).items() if k != "label"},
        }
        for r in results
        for p in r.parts
    ]
    return pd.DataFrame(rows).drop(columns="per_seed")


COLOURS = {"supported": "green", "not supported": "red", "inconclusive": "yellow", "not run": "bright_black"}


def print_table(results: Sequence[ClaimResult], file: IO[str] | None = None, width: int = 100) -> None:
    """The verdicts as a table for a terminal; the effect is that of the part that decided."""
    table = Table(title="Claims: 95 % interval over seeds and problems of the effect that decided", show_lines=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("claim", ratio=3)
    table.add_column("decided by", ratio=3)
    for r in results:
        weakest = r.detail.split("decided by: ", 1)[1]
        table.add_row(f"[{COLOURS[r.verdict]}]{r.verdict}[/]", f"{r.text} [dim]({r.paper_ref})[/]", escape(weakest))
    Console(file=file, width=width).print(table)
    counts = pd.Series([r.verdict for r in results]).value_counts()
    Console(file=file, width=width).print(", ".join(f"{counts.get(v, 0)} {v}" for v in COLOURS))
