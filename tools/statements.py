"""Numbers for sentences that are written by hand, each checked against what its sentence takes for granted.

In a template, `{{ above("dph_f", "grpo") }}` is the difference of the two arms' Pass@8 with its interval where the
records bear the word out. Where they do not, the page is not made: the error names the records' number, and the
sentence has to be written anew. So no sentence outlives its result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dphlib.analysis.claims import ClaimResult, verdict_counts
from dphlib.analysis.labels import label
from dphlib.experiment.results import Results
from dphlib.intervals import Interval, interval
from dphlib.runtime.files import RunError
from dphlib.scores import ArmScores
from dphlib.stats import Metric
from tools import evidence

IN = "in_domain"
METRICS: dict[str, Metric] = {"greedy": "greedy", "Pass": "pass", "styles": "styles_nats"}
REWRITE = "write the sentence anew in tools/templates"


class Statements:
    """What templates say of a run's results, and of its verdicts."""

    def __init__(self, results: Results, claims: Sequence[ClaimResult]) -> None:
        self.claims = claims
        at_stop = evidence.stopped(results)
        self.scores = {"end": results.scores} | ({"stopped": at_stop[0]} if at_stop else {})
        self.parts = {held: ArmScores.final(rows) for (suite, held), rows in results.by_content.items() if suite == IN}

    def above(self, a: str, b: str, measure: str = "Pass@8", **where: str) -> str:
        """The first arm's mean minus the second's, whose interval is above zero.

        Args:
            a, b: names of methods; "method variant" for a variant.
            measure: "greedy", "styles" (entropy in nats) or "Pass@k".
            where: `suite`, in domain without it; `at`: "stopped" for the stopping point, "hidden" or "hard" for a part
                of the problems in domain; the end without it.

        Raises RunError for an interval that is not above zero, and for arms that are not recorded.
        """
        got, unit, said = self._difference(a, b, measure, **where)
        if got.low <= 0:
            raise RunError(f"{said}: a sentence says above, the records say {evidence.effect(got, unit)}; {REWRITE}")
        return evidence.effect(got, unit).lstrip("+").replace("[+", "[").replace(", +", ", ")

    def below(self, a: str, b: str, measure: str = "Pass@8", **where: str) -> str:
        """As `above`, of the second arm over the first."""
        return self.above(b, a, measure, **where)

    def unclear(self, a: str, b: str, measure: str = "Pass@8", **where: str) -> str:
        """The first arm's mean minus the second's, whose interval holds zero; else and without records RunError."""
        got, unit, said = self._difference(a, b, measure, **where)
        if not got.low <= 0 <= got.high:
            raise RunError(f"{said}: a sentence says unclear, the records say {evidence.effect(got, unit)}; {REWRITE}")
        return evidence.effect(got, unit)

    def counts(self) -> str:
        """How many claims have each verdict."""
        return ", ".join(f"{n} {verdict}" for verdict, n in verdict_counts(self.claims).items() if n)

    def firm(self) -> tuple[int, int, int]:
        """Headline claims: how many there are, are decided, and stay so when all are judged at once."""
        heads = [one for one in self.claims if one.holds_jointly is not None]
        decided = [one for one in heads if one.verdict in ("supported", "not supported")]
        return len(heads), len(decided), sum(bool(one.holds_jointly) for one in decided)

    @property
    def functions(self) -> dict[str, Any]:
        """Those that templates call, by name."""
        names = ("above", "below", "unclear", "counts", "firm")
        return {name: getattr(self, name) for name in names}

    def _difference(self, a: str, b: str, measure: str, suite: str = IN, at: str = "end") -> tuple[Interval, str, str]:
        """The difference, its unit, and what was asked in words."""
        kind, _, count = measure.partition("@")
        metric: Metric = METRICS[kind]
        scores = self.parts[at] if at in self.parts else self.scores.get(at)
        said = f"{a} against {b}, {suite} {measure}, {at}"
        pair = []
        for name in (a, b):
            method, _, variant = name.partition(" ")
            found = scores.get(method, suite, metric, int(count or 1), variant or "main") if scores else None
            if found is None:
                raise RunError(f"{said}: no records of {label(method, variant or 'main')}; {REWRITE}")
            pair.append(found)
        return interval(pair, np.subtract), " nats" if metric == "styles_nats" else " points", said
