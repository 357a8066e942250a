"""The generated blocks of docs/findings.md: the abstract, and what came out of each question of the protocol.

The abstract, each question's answer and README's findings are written by hand in templates/findings.j2, their numbers
`statements.Statements`'. Figures, claims and what the studies gave follow each answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dphlib.analysis import studies
from dphlib.analysis.claims import ROOM, SYMBOLS, ClaimResult
from dphlib.analysis.labels import SUITES, claim_name
from dphlib.experiment.results import CLAIMS_FIGURE, Results
from dphlib.figures.captions import TITLES
from dphlib.settings.studies import STUDIES, planned_runs
from tools import blocks, evidence, parts, run
from tools.statements import Statements

FEW = 3
"""Claims, or comparisons, that a sentence names; of more it says how many there are."""


@dataclass(frozen=True, slots=True)
class Question:
    """A section's block: the figures, claims and sentences that answer it."""

    figures: tuple[str, ...]
    claims: tuple[str, ...] = ()
    said: Callable[[Results], list[str]] = lambda results: []


# --- Claims -------------------------------------------------------------------------------------------


def claim_line(decided: Sequence[ClaimResult]) -> str:
    """Claims with the symbols of their verdicts, those not supported first."""
    order = sorted(decided, key=lambda one: one.verdict != "not supported")
    return "Claims: " + " · ".join(f"{SYMBOLS[one.verdict]} *{claim_name(one.id)}*" for one in order)


def same_verdicts(decided: Sequence[ClaimResult], stopped: dict[str, ClaimResult]) -> list[str]:
    """How many claims have the same verdict at the end and at the stopping point; README has both of each."""
    if not stopped:
        return []
    judged = [one for one in decided if stopped[one.id].verdict != "not run"]
    alike = sum(stopped[one.id].verdict == one.verdict for one in judged)
    verdicts = "[verdicts](../README.md#claims)"
    return [
        f"{len(judged)} of {len(decided)} claims are judged at both points, with the same {verdicts} {alike} times."
    ]


# --- Studies ------------------------------------------------------------------------------------------


def _numbers(row: pd.Series) -> str:
    return f"{row['difference']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]"


def clear_ones(rows: pd.DataFrame, what: str) -> str:
    """How many of some comparisons are clear on in-domain Pass@8, the largest of them, and how far the others reach."""
    ran = evidence.spoken(rows)
    is_clear = studies.is_clear(ran)
    clear, others = ran[is_clear], ran[~is_clear]
    largest = clear.sort_values("difference", key=abs, ascending=False).head(FEW)
    named = ", ".join(f"{row['arm']} {_numbers(row)}" for _, row in largest.iterrows())
    some = f"the largest {FEW}: " if len(clear) > FEW else ""
    whose = "the others'" if len(clear) else "their"
    reach = f"; {whose} intervals lie within {evidence.span(others)}" if len(others) else ""
    return f"{what}: {len(clear)} of {len(ran)} clear{f' ({some}{named})' if named else ''}{reach}."


def _study(results: Results, name: str, what: str) -> list[str]:
    """`clear_ones` of a whole study; or that it was not run."""
    rows = evidence.study_rows(results, name)
    return [evidence.absent(name) if evidence.spoken(rows).empty else clear_ones(rows, what)]


def weights(results: Results) -> list[str]:
    """Each weight chosen on validation, and what other weights do."""
    return [*evidence.tuned_sentences(results), *_study(results, "eta", "Other weights, against the method's own")]


def stopping(results: Results) -> list[str]:
    """Where runs stopped."""
    found = evidence.stopped(results)
    return [evidence.mean_stops(found[1]) if found else evidence.NO_STOP]


def rivals(results: Results) -> list[str]:
    """Every rival against GRPO, and against DPH-F."""
    rows = evidence.study_rows(results, "rivals")
    if evidence.spoken(rows).empty:
        return [evidence.absent("rivals")]
    return [" ".join(clear_ones(rows[rows["against"] == name], f"Rivals minus {name}") for name in ("GRPO", "DPH-F"))]


QUESTIONS = {
    "collapse": Question(
        ("fig8_frontier", "fig2_pass_at_k"),
        ("greedy_rises", "pass_k_falls", "pass_16_falls_rkl", "grpo_keeps_one_style"),
    ),
    "contents": Question(("fig20_contents",)),
    "keep": Question(
        ("fig4_styles",), ("dph_keeps_styles", "dph_greedy_highest", "js_pass_8_above_grpo", "dph_nearer_at_large_k")
    ),
    "shift": Question(
        (CLAIMS_FIGURE,),
        (
            *("cross_every_rl_loses", "cross_dph_loses_least", "out_every_rl_loses", "out_dph_loses_least"),
            *("out_rkl_loses_most", "loss_grows_with_shift"),
        ),
    ),
    "direction": Question(
        ("fig17_arms",),
        ("forward_keeps_more_than_reverse", "dph_above_reverse_gradient"),
        lambda results: _study(results, "strength", "Other divergences at DPH-F's strength, minus DPH-F"),
    ),
    "factorial": Question(
        ("fig17_arms",),
        ("rehearsal_beyond_selection", "partition_costs_nothing", "threshold_8_as_good_as_6"),
    ),
    "weights": Question(("fig12_eta",), (), weights),
    "stopping": Question(("fig8_frontier",), (), stopping),
    "rivals": Question(("fig17_arms",), (), rivals),
    "complementarity": Question(("fig19_complementarity",)),
    "definition": Question(("fig2_pass_at_k_family",), ("generator_as_good_as_definition", "no_reference_model")),
}


# --- The blocks ---------------------------------------------------------------------------------------


def page_blocks(root: Path) -> dict[str, str]:
    """The generated blocks of the page. Raises RunError as `written`, and for a file of the runs that is absent."""
    results, (ended, stopped) = evidence.load(root), run.verdicts(root)
    answers = written(results, ended)
    figures = {path.stem for path in (root / run.FULL / "figures").glob("*.png")}
    found = {"abstract": answers["abstract"]}
    for name, text in made(results, ended, stopped, figures).items():
        found[name] = f"{answers[name]}\n{text}" if name in answers else text
    return found


def readme_block(root: Path) -> dict[str, str]:
    """README's findings. Raises RunError as `page_blocks`."""
    return {"findings": written(evidence.load(root), run.verdicts(root)[0])["readme"]}


def written(results: Results, claims: Sequence[ClaimResult]) -> dict[str, str]:
    """What is written by hand: README's findings, the abstract, and answers by question.

    Raises RunError for a sentence that the results do not bear out.
    """
    runs = results.records.loc[results.records["method"] != "base", ["method", "variant", "seed"]].drop_duplicates()
    return blocks.rendered(
        "findings",
        **Statements(results, claims).functions,
        where=run.FULL,
        command=run.FULL_COMMAND,
        runs=len(runs),
        planned=len(planned_runs(parts.full_profile(), tuple(STUDIES))),
        arms=len(runs[["method", "variant"]].drop_duplicates()),
        decisive=int(((runs["method"] == "grpo") & (runs["variant"] == "main")).sum()),
        bases=len(results.scores.of("base", "in_domain").seeds),
        claims=len(claims),
        answers=int(results.records["n"].sum()),
    )


def made(
    results: Results, ended: Sequence[ClaimResult], stopped: Sequence[ClaimResult], figures: Collection[str]
) -> dict[str, str]:
    """What is generated of a run's results, by question.

    Args:
        ended, stopped: the verdicts at the end and at the stopping point, none where there is no such point.
        figures: names of those that it has.
    """
    of, at_stop = {one.id: one for one in ended}, {one.id: one for one in stopped}
    found, drawn = {}, set[str]()
    for name, question in QUESTIONS.items():
        lines = []
        for figure in (one for one in question.figures if one in figures):
            title, path = TITLES[figure], f"../{run.FULL}/figures/{figure}.png"
            lines.append(f"Again [{title.partition(',')[0]}]({path})." if figure in drawn else f"![{title}]({path})")
            drawn.add(figure)
        if question.claims:
            lines.append(claim_line([of[claim] for claim in question.claims]))
        found[name] = [*lines, *question.said(results)]
    found["stopping"] += same_verdicts(ended, at_stop)
    found["untestable"] = untestable(results, ended)
    return {name: "\n\n".join(lines) + "\n" for name, lines in found.items()}


def untestable(results: Results, decided: Sequence[ClaimResult]) -> list[str]:
    """The base's room to lose, the claims that it cannot decide, each with why, and those that were not run."""
    scores = results.scores
    passed = {title: scores.get("base", suite, "pass", 8) for suite, title in SUITES.items()}
    room = ", ".join(f"{100 * got.mean:.1f} {title}" for title, got in passed.items() if got)
    low, high = (100 * end for end in ROOM)
    lines = [f"The base's Pass@8 in per cent is {room}; a loss can be tested between {low:g} and {high:g}."]
    barred = [f"{claim_name(one.id)} ({one.deciding_part.reason})" for one in decided if one.verdict == "not testable"]
    lines.append(f"Claims not testable: {'; '.join(barred) or 'none'}.")
    absent = [claim_name(one.id) for one in decided if one.verdict == "not run"]
    more = f"; and {len(absent) - FEW} more" if len(absent) > FEW else ""
    lines += [f"Claims not run: {'; '.join(absent[:FEW])}{more}."] if absent else []
    return ["\n".join(f"- {line}" for line in lines)]
