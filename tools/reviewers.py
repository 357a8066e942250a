"""The generated blocks of docs/reviewers.md: questions held against the paper, and what the recorded run says to each.

The run and what is said of a study are `tools.evidence`'s. What no arm of it answers is said to be not answered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from dphlib.analysis import retention, sentences, studies
from dphlib.analysis.claims import ClaimResult, effect_text
from dphlib.analysis.labels import FAMILY, NAMES, SUITES
from dphlib.experiment.exploratory import at_temperatures
from dphlib.experiment.results import Results
from dphlib.intervals import holm, interval
from dphlib.settings.studies import HARD, TEMPERATURE
from tools import blocks, evidence, run
from tools.evidence import DPH, minus, stopped_sentences, study_sentences, tuned_sentences


@dataclass(frozen=True, slots=True)
class Question:
    """A question and what of this repository bears on it.

    Args:
        text: what is asked.
        by: who asks it; "" where no source that we could read does.
        studies: names of `studies.STUDIES`; `name:method,method` for the comparisons of these arms alone.
        claims: ids of `claims.CLAIMS`.
        more: further sentences from the results.
        open: what no arm of this repository answers.
    """

    text: str
    by: str = ""
    studies: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    more: tuple[Callable[[Results], list[str]], ...] = ()
    open: str = ""

    @property
    def where(self) -> str:
        """The studies that answer it, in words."""
        named = []
        for part in self.studies:
            name, _, only = part.partition(":")
            arms = ", ".join(NAMES[method] for method in only.split(",")) if only else ""
            named.append(f"`{name}`" + (f" ({arms})" if arms else ""))
        return ", ".join(named)


# --- What came out ------------------------------------------------------------------------------------


def claim_sentences(results: Results, ids: Sequence[str], decided: Sequence[ClaimResult]) -> list[str]:
    """The verdicts of some claims, with the effect that decided."""
    of_id = {one.id: one for one in decided}
    lines = []
    for one in (of_id[name] for name in ids):
        effect = effect_text(one)
        lines.append(f"Claim: {one.text} **{one.verdict}**" + (f" ({effect})." if effect else "."))
    return lines


def leaders(results: Results) -> list[str]:
    """Which divergence of the rehearsal is highest on each suite, and above how many others clearly.

    Holm's correction is over all pairs of one suite and measure.
    """
    lines, first = [], set()
    for suite, title in SUITES.items():
        for measure, metric, k in (("greedy", "greedy", 1), ("Pass@8", "pass", 8)):
            got = {m: results.scores.get(m, suite, metric, k) for m in FAMILY if m != "base"}  # type: ignore[arg-type]
            arms = {m: one for m, one in got.items() if one is not None}
            if len(arms) < 2:
                continue
            best = max(arms, key=lambda m: arms[m].mean)
            pairs = list(combinations(arms, 2))
            corrected = holm([interval([arms[a], arms[b]], np.subtract).p_of(0.0) for a, b in pairs])
            above = sum(best in pair and p < studies.LEVEL for pair, p in zip(pairs, corrected, strict=True))
            first.add(best)
            lines.append(
                f"{title.capitalize()}, {measure}: {NAMES[best]} is highest ({100 * arms[best].mean:.1f} %), "
                f"clearly above {above} of {len(arms) - 1} others."
            )
    if lines:
        lines.append(
            "One is highest on all of these." if len(first) == 1 else "None is highest on all of these by its mean."
        )
    return lines


def hard_sentences(results: Results) -> list[str]:
    """Pass@k at the most answers that were drawn of the problems that the base seldom solves."""
    if HARD not in results.beyond:
        return ["Not answered: the hard problems were not drawn; `--studies hard` draws them."]
    scores, lines = results.hard_scores, []
    for suite, title in SUITES.items():
        n = min((scores.answers(m, suite) or 0 for m in ("base", "grpo", *DPH)), default=0)
        if not n:
            continue
        of = {m: scores.of(m, suite, "pass", n) for m in ("base", "grpo", *DPH)}
        said = [
            text
            for a, b in (("grpo", "base"), *((m, other) for m in DPH for other in ("grpo", "base")))
            for text in minus(of[a], of[b], f"{NAMES[a]} minus {NAMES[b]}")
        ]
        problems = len(of["base"].problems)
        lines.append(f"{title.capitalize()}, Pass@{n} of {problems} hard problems, uncorrected: {'; '.join(said)}.")
    return lines


def temperature_sentences(results: Results) -> list[str]:
    """What the final policies of GRPO and DPH give at other temperatures."""
    if TEMPERATURE not in results.beyond:
        return ["Not answered: no answers were drawn at other temperatures; `--studies temperature` draws them."]
    of_each = at_temperatures(results.beyond[TEMPERATURE])
    return [f"{sentences.temperatures(of_each, m).rstrip('.')}; exploratory, uncorrected." for m in ("grpo", *DPH)]


def turnover(results: Results) -> list[str]:
    """Problems lost and gained in domain against the base, which itself loses and gains some by chance."""
    table = retention.support(results.records, ("grpo", *DPH))
    table = table[table["suite"] == SUITES["in_domain"]]
    table = table[table["k"] == table["k"].max()]
    said = [f"{row.method} {row.lost:.1f} and {row.gained:.1f}" for row in table.itertuples()]
    if not said:
        return []
    one = table.iloc[0]
    return [
        f"In domain at k = {one['k']}, problems of {one['problems']} lost and gained, no interval: {'; '.join(said)}."
    ]


def on_sums(results: Results) -> list[str]:
    """DPH against GRPO after training on the sums."""
    lines = []
    for method in DPH:
        pair = [results.scores.get(m, "out_of_domain", "pass", 8, "domain=sums") for m in (method, "grpo")]
        what = f"Trained on sums, {NAMES[method]} minus GRPO, Pass@8 on sums:"
        lines += [f"{text}, uncorrected." for text in minus(pair[0], pair[1], what)]
    return lines or ["Not answered: no arm trained on sums is in the recorded run."]


# --- The questions ------------------------------------------------------------------------------------

QUESTIONS = (
    Question(
        "Does the direction of the divergence decide what is covered, or its strength?",
        "MARA (GX-Chen et al., arXiv 2510.20817)",
        ("direction", "strength", "eta", "rivals:mara"),
        ("forward_keeps_more_than_reverse", "dph_above_reverse_gradient"),
    ),
    Question(
        "Were reverse and forward KL tuned separately, with the same budget?",
        studies=("eta:dph_f,rkl,rkl_k2,dph_rkl",),
        more=(tuned_sentences,),
        open="learning rate and length were tuned for no method.",
    ),
    Question(
        "Is forward KL the cure? Or does it put mass off target, as leaving KL out invites reward hacking?",
        "SAGE (Lee et al., arXiv 2605.18864)",
        ("controls:dph_f,dph_js,dph_f_all",),
        ("dph_greedy_highest", "partition_costs_nothing"),
        open="no arm reshapes the reference as SAGE does.",
    ),
    Question(
        "Are losses of Pass@k the turnover of the solved set, which timely review would repair?",
        "ReMind (Qin et al., arXiv 2606.03087)",
        ("rivals:remind",),
        more=(turnover,),
        open="how soon a lost problem can be repaired is not measured.",
    ),
    Question(
        "Is it overtraining? Would GRPO, stopped in time, do as well?",
        "BBG (Yuan et al., arXiv 2606.15455)",
        ("length",),
        more=(stopped_sentences,),
        open="no arm gates prompts by their successes as BBG does.",
    ),
    Question(
        "Should the target be the initial policy without its wrong answers, approached by an alpha-divergence?",
        "alpha-DPG (Kruszewski et al., arXiv 2512.05962)",
        ("strength:alpha_0.2,alpha_0.5,alpha_0.8",),
        open="the alpha arms rehearse correct answers of the initial policy on D_pef beside RL on D_exp; alpha-DPG "
        "replaces RL by the fit to its target, and no arm does.",
    ),
    Question(
        "Why a partition made once, with a fixed threshold? Would an adaptive one do better?",
        studies=("threshold", "presample_k", "rivals:remind"),
        claims=("threshold_8_as_good_as_6", "partition_costs_nothing"),
        open="no arm moves a prompt from one set to the other while it trains; ReMind's queue of mastered prompts is "
        "the nearest.",
    ),
    Question(
        "Is it the divergence, the data that it selects, or the partition?",
        studies=("controls", "factorial"),
        claims=("rehearsal_beyond_selection",),
    ),
    Question("Do other divergences do as well?", studies=("strength",), claims=("generator_as_good_as_definition",)),
    Question(
        "Is rehearsal more than a replay buffer?",
        studies=("controls:sft_rehearsal", "answers", "rivals:remind"),
        open="no arm refreshes the stored answers while it trains.",
    ),
    Question(
        "Does it help a weak initial policy?",
        open="all bases are of one recipe and about as good. The next question's problems are where they are weak.",
    ),
    Question("Does it hold to k = 256?", claims=("dph_nearer_at_large_k",), more=(hard_sentences,)),
    Question("Would answers drawn at another temperature do as well?", more=(temperature_sentences,)),
    Question("Why does no variant win everywhere?", more=(leaders,), open="why. What is measured is whether."),
    Question(
        "Where is the gain in mathematics? Do styles have to complement one another for it?",
        "a user who saw no Pass@k edge of DPH-F in mathematics",
        ("complementarity",),
        more=(on_sums,),
        open="no model of the paper's size was trained on its mathematics sets.",
    ),
    Question(
        "Would cheaper means do: an entropy bonus, a higher clip, another advantage?",
        studies=("entropy_bonus", "clip_higher", "rivals"),
    ),
    Question(
        "Do the authors' scripts differ from the paper in ways that matter?",
        studies=("authors_weight", "top_p"),
        open="their full fine-tuning of 8B and 32B models was not repeated.",
    ),
)


# --- The block ----------------------------------------------------------------------------------------


def answered(results: Results, question: Question, decided: Sequence[ClaimResult]) -> list[str]:
    """What the results say to a question, a sentence each."""
    lines = [line for part in question.studies for line in study_sentences(results, part)]
    lines += claim_sentences(results, question.claims, decided)
    lines += [line for more in question.more for line in more(results)]
    return [*lines, f"Not answered: {question.open}"] if question.open else lines


def made(results: Results, decided: Sequence[ClaimResult]) -> dict[str, str]:
    """The blocks of a run's results and verdicts."""
    trained = results.records.loc[results.records["method"] != "base", ["method", "variant", "seed"]].drop_duplicates()
    arms = len(trained[["method", "variant"]].drop_duplicates())
    rows = [(question, answered(results, question, decided)) for question in QUESTIONS]
    return blocks.rendered("reviewers", rows=rows, where=run.FULL, runs=len(trained), arms=arms)


def page_blocks(root: Path) -> dict[str, str]:
    """The generated blocks of the page. Raises RunError naming what of the recorded run is absent."""
    return made(evidence.load(root), run.verdicts(root)[0])
