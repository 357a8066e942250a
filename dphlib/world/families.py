"""Families of the CPU world's questions, and for each the odds of the styles, drawn by the world's seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dphlib.settings.stages import WorldConfig
from dphlib.world.templates import STYLES

Content = Literal["clean", "hidden", "hard"]


@dataclass(frozen=True, slots=True)
class Family:
    """A form of question, about `attribute` where one column decides ("" otherwise).

    Args:
        odds: style -> share of its problems on which that style's habit is the right one; only where it is hidden.
        habits: style -> share of the corpus's answers.
    """

    form: str
    attribute: str
    content: Content
    odds: Mapping[str, float]
    habits: Mapping[str, float]

    @property
    def name(self) -> str:
        return f"{self.form} {self.attribute}".strip()

    @staticmethod
    def draw(rng: random.Random, shares: Mapping[str, float]) -> str:
        """A style, as often as `shares` says."""
        return rng.choices(STYLES, [shares[style] for style in STYLES])[0]


def styled_families(config: WorldConfig, domain: str, forms: Sequence[tuple[str, str, Content]]) -> list[Family]:
    """Families from (form, attribute, content). Hidden ones have odds and habits drawn from Dirichlet's distribution,
    the others every style alike; the draws depend on the world's seed and the domain."""
    rng, even = random.Random(f"{config.seed}-{domain}"), dict.fromkeys(STYLES, 1 / len(STYLES))

    def simplex(concentration: float) -> Mapping[str, float]:
        drawn = [rng.gammavariate(concentration, 1) for _ in STYLES]
        return {style: value / sum(drawn) for style, value in zip(STYLES, drawn, strict=True)}

    made = []
    for form, attribute, content in forms:
        odds: Mapping[str, float] = even
        habits: Mapping[str, float] = even
        if content == "hidden":
            odds, habits = simplex(config.odds_concentration), simplex(config.habits_concentration)
        made.append(Family(form, attribute, content, odds, habits))
    return made
