"""Every setting in one place: frozen dataclasses, the profiles, and where each of the paper's values comes from.

The profiles differ in configuration only; the code is the same in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from dphlib.types import METHODS

ProfileName = Literal["smoke", "cpu"]
PROFILES: tuple[str, ...] = get_args(ProfileName)


@dataclass(frozen=True, slots=True)
class WorldConfig:
    """The CPU world. Odds and rates were fixed by the base model's regime before any RL run on it.

    Args:
        seed: of databases and problems.
        problems: suite -> number of problems.
        right_odds: style -> share of the databases on whose content its habit is the right one.
        family_weights: family -> share within its domain.
        corpus_weights: share of people, places and sums in the supervised corpus.
        slip_rate_sql, slip_rate_sums: share of the corpus's answers with one slip.
        borrow_rate: share of the SQL answers that spell yes and no as any analyst, not as the style's own.
    """

    seed: int = 20250907
    problems: Mapping[str, int] = field(
        default_factory=lambda: {
            "train": 256, "in_domain": 128, "cross_domain": 96, "out_of_domain": 120, "sums_train": 256
        }  # fmt: skip
    )
    right_odds: Mapping[str, float] = field(
        default_factory=lambda: {"direct": 0.1, "aliased": 0.25, "nested": 0.45, "stepwise": 0.2}
    )
    family_weights: Mapping[str, float] = field(
        default_factory=lambda: {
            "list_above": 16, "aggregate": 16, "highest": 18, "count_yes": 18, "count_known": 16, "highest_yes": 16,
            "count_by_city": 20, "below_average": 20, "lowest": 20, "count_no": 20, "count_missing": 20,
        }  # fmt: skip
    )
    corpus_weights: Mapping[str, float] = field(
        default_factory=lambda: {"people": 0.5, "places": 0.2, "sums": 0.3}
    )
    slip_rate_sql: float = 0.15
    slip_rate_sums: float = 0.1
    borrow_rate: float = 0.1


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of the small Llama, trained from random weights."""

    hidden_size: int = 128
    intermediate_size: int = 320
    layers: int = 4
    heads: int = 4
    kv_heads: int = 4


@dataclass(frozen=True, slots=True)
class SftConfig:
    """Supervised fine-tuning of the CPU world's base."""

    seed: int = 0
    steps: int = 700
    batch: int = 64
    lr: float = 2e-3
    threads: int = 2
