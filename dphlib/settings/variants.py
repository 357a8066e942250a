"""The one setting in which an arm differs from its method's main run: a closed table of keys, read in one place.

    parse("eta=0.05")        ("eta", 0.05)
    reading("eta=0.05")      "eta 0.05"
    parse_seeds("5")         (0, 1, 2, 3, 4)

`VARIANTS` says which keys there are, what values they take, which methods they mean something for, and how a reader
sees them. What a value does to the settings is in `config.RunConfig`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

MAIN = "main"
"""The variant of a run that differs in nothing."""

Applies = Literal["any", "weighted", "rehearsing", "partitioned", "js"]
"""Methods that a setting means something for: all; with a divergence that has a weight; with stored answers; trained on
D_exp; with a Jensen-Shannon divergence."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A key of a variant.

    Args:
        kind: type of its value.
        allowed: the values, in words.
        fits: whether a value is one of them.
        applies: for which methods.
        reading: what a reader sees, `{}` for the value.
        meaning: one line for help and documents.
    """

    kind: type
    allowed: str
    fits: Callable[[Any], bool]
    applies: Applies
    reading: str
    meaning: str


def _at_least_1(value: float) -> bool:
    return value >= 1


def _positive(value: float) -> bool:
    return 0 < value < float("inf")


VARIANTS: dict[str, Setting] = {
    "eta": Setting(float, "> 0", _positive, "weighted", "eta {}", "weight of the divergence; of RKL its coefficient"),
    "strength": Setting(
        str, "equal", lambda v: v == "equal", "weighted", "{} strength",
        "eta scaled so that eta f''(1) is that of DPH-F: equal curvature where the policy leaves the reference",
    ),
    "authors_eta": Setting(
        float, "> 1", lambda v: 1 < v < float("inf"), "rehearsing", "eta / {}",
        "eta divided by this: 8 is what averaging 2,048 RL rows and 256 D_pef rows together comes to",
    ),
    "js_scale": Setting(float, "> 0", _positive, "js", "{} x JS", "times JS: 2 is the authors' form without the 1/2"),
    "threshold": Setting(
        int, "a whole number from 1 to k", _at_least_1, "partitioned", "threshold {}",
        "correct pre-samples from which a prompt is near-perfect",
    ),
    "k": Setting(
        int, "a whole number from 1 on", _at_least_1, "partitioned", "k {}",
        "pre-samples a prompt, the threshold at the same share of them",
    ),
    "answers": Setting(
        int, "a whole number from 1 on", _at_least_1, "rehearsing", "{} stored answers", "stored answers a prompt"
    ),
    "clip_high": Setting(float, "> 0", _positive, "any", "clip-high {}", "PPO-clip above"),
    "top_p": Setting(
        float, "in (0, 1)", lambda v: 0 < v < 1, "any", "rollout top_p {}",
        "nucleus that rollouts are drawn from; their log-probs stay those of the whole distribution",
    ),
    "entropy": Setting(float, "> 0", _positive, "any", "entropy bonus {}", "coefficient of an entropy bonus on L_exp"),
    "iterations": Setting(int, "a whole number from 1 on", _at_least_1, "any", "{} iterations", "training length"),
    "domain": Setting(str, "sums", lambda v: v == "sums", "any", "trained on {}", "training domain"),
}  # fmt: skip


def parse(variant: str) -> tuple[str, Any]:
    """(key, value) of a variant; ("main", None) for `main`.

    Raises:
        ValueError: an unknown key, a value that is not allowed, or one that is not written in its shortest form, for
            one arm must have one name.

    >>> parse("threshold=7"), parse("domain=sums"), parse("main")
    (('threshold', 7), ('domain', 'sums'), ('main', None))
    """
    if variant == MAIN:
        return MAIN, None
    key, equals, text = variant.partition("=")
    if key not in VARIANTS or not equals:
        raise ValueError(f"unknown variant {variant!r}; known: main, {', '.join(f'{name}=...' for name in VARIANTS)}")
    setting = VARIANTS[key]
    try:
        value = setting.kind(text)
    except ValueError:
        value = None
    if value is None or not setting.fits(value):
        raise ValueError(f"variant {variant!r}: {key} must be {setting.allowed}, {text!r} is not")
    if (shortest := f"{value:g}" if setting.kind is float else str(value)) != text:
        raise ValueError(f"variant {variant!r}: write {key}={shortest}, so that one arm has one name")
    return key, value


def reading(variant: str) -> str:
    """How a reader sees a variant; "" for `main`.

    >>> reading("clip_high=0.28"), reading("authors_eta=8"), reading("main")
    ('clip-high 0.28', 'eta / 8', '')
    """
    key, _, text = variant.partition("=")
    return "" if variant == MAIN else VARIANTS[key].reading.format(text)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from text: a number is how many, a list names them.

    Raises:
        ValueError: neither, none, or one that is named twice.

    >>> parse_seeds("3"), parse_seeds("0,4"), parse_seeds("7,")
    ((0, 1, 2), (0, 4), (7,))
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    seeds = tuple(int(part) for part in parts if part.isdecimal())
    whole = len(seeds) == len(parts) == len(set(seeds))
    if whole and seeds and "," not in text:
        seeds = tuple(range(*seeds))
    if not whole or not seeds:
        raise ValueError(f"seeds {text!r}: give their number, such as 5, or a list without repetition, such as 0,1,2")
    return seeds
