"""Arms: a method, the one setting in which it differs from its main run, and a seed.

    parse("eta=0.05")        ("eta", 0.05)
    reading("eta=0.05")      "eta 0.05"
    parse_seeds("5")         (0, 1, 2, 3, 4)

`VARIANTS` is the closed table of those settings: what values they take, which methods they mean something for, and how
a reader sees them. `RunConfig` is one arm, and what it makes of a profile's settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, NamedTuple

from dphlib.runtime.files import InputError, meant, unknown
from dphlib.settings.methods import CONFIGS, MethodConfig
from dphlib.settings.stages import PresampleConfig, TrainConfig

MAIN = "main"
"""The variant of a run that differs in nothing."""


class Values(NamedTuple):
    """What a setting may be: its type, the values in words, and whether a value is one of them."""

    kind: type
    allowed: str
    fits: Callable[[Any], bool]


class Applies(NamedTuple):
    """Which methods a setting means something for, and why it means nothing for the others."""

    to: Callable[[MethodConfig], bool]
    why_not: str = ""


class Setting(NamedTuple):
    """A key of a variant; `reading` is what a reader sees, `{}` for the value."""

    values: Values
    applies: Applies
    reading: str


_POSITIVE = Values(float, "> 0", lambda value: 0 < value < float("inf"))
_WHOLE = Values(int, "a whole number from 1 on", lambda value: value >= 1)

_ANY = Applies(lambda method: True)
_WEIGHTED = Applies(lambda method: method.weight > 0, "it has no divergence to weigh")
_REHEARSING = Applies(lambda method: method.divergence is not None, "it rehearses no stored answer")
_PARTITIONED = Applies(lambda method: method.partitioned, "it trains on all prompts, without a partition")
_JS = Applies(lambda method: (method.divergence or "").startswith("js"), "its divergence is not JS")

VARIANTS: dict[str, Setting] = {
    # Weight of the divergence; of RKL its coefficient.
    "eta": Setting(_POSITIVE, _WEIGHTED, "eta {}"),
    # eta divided by this: 8 is what averaging 2,048 RL rows and 256 D_pef rows together comes to.
    "authors_eta": Setting(Values(float, "> 1", lambda value: 1 < value < float("inf")), _REHEARSING, "eta / {}"),
    # JS times this: 2 is the authors' form without the 1/2.
    "js_scale": Setting(_POSITIVE, _JS, "{} x JS"),
    # Correct pre-samples from which a prompt is near-perfect.
    "threshold": Setting(_WHOLE._replace(allowed="a whole number from 1 to k"), _PARTITIONED, "threshold {}"),
    # Pre-samples per prompt, the threshold at the same share of them.
    "k": Setting(_WHOLE, _PARTITIONED, "k {}"),
    # Stored answers per prompt.
    "answers": Setting(_WHOLE, _REHEARSING, "{} stored answers"),
    # PPO-clip above.
    "clip_high": Setting(_POSITIVE, _ANY, "clip-high {}"),
    # Nucleus that rollouts are drawn from; their log-probs stay those of the whole distribution.
    "top_p": Setting(Values(float, "in (0, 1)", lambda value: 0 < value < 1), _ANY, "rollout top_p {}"),
    # Coefficient of an entropy bonus on L_exp.
    "entropy": Setting(_POSITIVE, _ANY, "entropy bonus {}"),
    # Length of the training.
    "iterations": Setting(_WHOLE, _ANY, "{} iterations"),
    # Share of the problems in domain whose content is hidden, in place of the world's.
    "hidden": Setting(Values(float, "in [0, 1)", lambda value: 0 <= value < 1), _ANY, "hidden share {}"),
    # Domain of the training.
    "domain": Setting(Values(str, "sums", lambda value: value == "sums"), _ANY, "trained on {}"),
}


def parse(variant: str) -> tuple[str, Any]:
    """(key, value) of a variant; ("main", None) for `main`.

    Raises:
        ValueError: an unknown key, a value that is not allowed, or one that is not written in its shortest form:
            one arm has one name.

    >>> parse("threshold=7"), parse("domain=sums"), parse("main")
    (('threshold', 7), ('domain', 'sums'), ('main', None))
    """
    if variant == MAIN:
        return MAIN, None
    key, equals, text = variant.partition("=")
    if key not in VARIANTS or not equals:
        known = ", ".join(f"{name}=..." for name in VARIANTS)
        raise InputError(f"unknown variant {variant!r}; known: {MAIN}, {known}{meant(key, (MAIN, *VARIANTS))}")
    kind, allowed, fits = VARIANTS[key].values
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise InputError(f"variant {variant!r}: {key} must be {allowed}, {text!r} is not")
    if (shortest := f"{value:g}" if kind is float else str(value)) != text:
        raise InputError(f"variant {variant!r}: write {key}={shortest}, so that one arm has one name")
    return key, value


def reading(variant: str) -> str:
    """How a reader sees a variant; "" for `main`.

    >>> reading("clip_high=0.28"), reading("authors_eta=8"), reading("main")
    ('clip-high 0.28', 'eta / 8', '')
    """
    key, _, text = variant.partition("=")
    return "" if variant == MAIN else VARIANTS[key].reading.format(text)


# How a variant's value changes the weight of a method's divergence, and which of its other settings it is.
_WEIGHTS: dict[str, Callable[[Mapping[str, MethodConfig], MethodConfig, Any], float]] = {
    "eta": lambda configs, config, value: value,
    "authors_eta": lambda configs, config, value: config.weight / value,
    "js_scale": lambda configs, config, value: config.weight * value,  # the loss is linear in f
}
_FIELDS = {"clip_high": "clip_high", "entropy": "entropy_coef"}


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One trained arm: a method, the one setting in which it differs from its main run, and a seed.

    >>> RunConfig("dph_js", "eta=0.025", 0).method_config.eta
    0.025
    """

    method: str
    variant: str
    seed: int

    def __post_init__(self) -> None:
        if self.method not in CONFIGS:
            raise unknown("method", self.method, CONFIGS)
        key, _ = parse(self.variant)
        if key == MAIN:
            return
        applies = VARIANTS[key].applies
        if not applies.to(CONFIGS[self.method]):
            raise InputError(f"variant {self.variant!r} means nothing for {self.method}: {applies.why_not}")
        if key in _FIELDS and self.method_config == CONFIGS[self.method]:
            raise InputError(main_run_text(self))

    @property
    def name(self) -> str:
        return f"{self.method}-{self.variant}-seed{self.seed}"

    @property
    def in_words(self) -> str:
        """For a reader.

        >>> RunConfig("grpo", "main", 3).in_words
        'grpo seed 3'
        """
        return " ".join([self.method, *([] if self.variant == MAIN else [self.variant]), f"seed {self.seed}"])

    @property
    def sets_weight(self) -> bool:
        """Whether what it sets is the weight of the divergence, which profiles have their own of."""
        return parse(self.variant)[0] in _WEIGHTS

    def setting(self, key: str) -> Any:
        """Value of a setting, None where this arm does not set it."""
        name, value = parse(self.variant)
        return value if name == key else None

    @property
    def method_config(self) -> MethodConfig:
        """What is trained with the weights of `methods`; a profile may have others: `Profile.method_config`."""
        return self.configured(CONFIGS)

    def configured(self, configs: Mapping[str, MethodConfig]) -> MethodConfig:
        """What is trained: the method of `configs` with this arm's setting."""
        config = configs[self.method]
        key, value = parse(self.variant)
        if key in _WEIGHTS:
            return config.weighing(_WEIGHTS[key](configs, config, value))
        return replace(config, **{_FIELDS[key]: value}) if key in _FIELDS else config

    def train_config(self, train: TrainConfig) -> TrainConfig:
        """A profile's training with this arm's setting."""
        key, value = parse(self.variant)
        return replace(train, **{key: value}) if key in ("iterations", "top_p") else train

    def presample_config(self, presample: PresampleConfig) -> PresampleConfig:
        """A profile's pre-sampling with this arm's setting; another k keeps the threshold's share, rounded up."""
        key, value = parse(self.variant)
        if key == "k":
            return replace(presample, k=value, threshold=ceil(presample.threshold * value / presample.k))
        return replace(presample, **{key: value}) if key in ("threshold", "answers") else presample


def main_run_text(run: RunConfig) -> str:
    """Why a variant that changes nothing is refused."""
    return f"variant {run.variant!r} of {run.method} is its main run: choose another value"


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
        raise InputError(f"seeds {text!r}: give their number, such as 5, or a list without repetition, such as 0,1,2")
    return seeds
