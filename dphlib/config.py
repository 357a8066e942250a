"""Every setting in one place: frozen dataclasses, the profiles, and where each of the paper's values comes from.

The profiles differ in configuration only; the code is the same in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import ceil
from typing import Any, Literal, get_args

from dphlib.variants import MAIN, VARIANTS, parse, parse_seeds

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
            "train": 256,
            "in_domain": 128,
            "cross_domain": 96,
            "out_of_domain": 120,
            "sums_train": 256,
        }
    )
    right_odds: Mapping[str, float] = field(
        default_factory=lambda: {"direct": 0.1, "aliased": 0.25, "nested": 0.45, "stepwise": 0.2}
    )
    family_weights: Mapping[str, float] = field(
        default_factory=lambda: {
            "list_above": 16,
            "aggregate": 16,
            "highest": 18,
            "count_yes": 18,
            "count_known": 16,
            "highest_yes": 16,
            "count_by_city": 20,
            "below_average": 20,
            "lowest": 20,
            "count_no": 20,
            "count_missing": 20,
        }
    )
    corpus_weights: Mapping[str, float] = field(default_factory=lambda: {"people": 0.38, "places": 0.17, "sums": 0.45})
    slip_rate_sql: float = 0.15
    slip_rate_sums: float = 0.1
    borrow_rate: float = 0.1


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of the small Llama, trained from random weights."""

    hidden_size: int = 128
    intermediate_size: int = 256
    layers: int = 3
    heads: int = 4
    kv_heads: int = 4


@dataclass(frozen=True, slots=True)
class SftConfig:
    """Supervised fine-tuning of the CPU world's base: Muon on the matrices, AdamW on the rest."""

    seed: int = 0
    steps: int = 800
    batch: int = 80
    lr_matrices: float = 0.02
    lr_rest: float = 3e-3
    threads: int = 2


@dataclass(frozen=True, slots=True)
class PresampleConfig:
    """Pre-sampling of the initial policy: k = 8 at T = 1.0, top_p = 0.95 [code]; threshold 6 of 8 for Llama [2nd].

    `answers` are stored for each near-perfect prompt: 1 in the paper, from one more draw [code, 2nd].
    """

    k: int = 8
    temperature: float = 1.0
    top_p: float = 0.95
    threshold: int = 6
    seed: int = 1
    answers: int = 1


@dataclass(frozen=True, slots=True)
class MethodConfig:
    """What sets one method apart from the others.

    Args:
        trains_on: `all` prompts (the baselines) or D_exp only (`exploration`), with D_pef rehearsed. With `all` and a
            divergence there is no partition: every prompt that has a stored answer is rehearsed too.
        divergence: generator on the stored answers, or `likelihood` (plain -log pi_theta); None rehearses nothing.
        alpha: of the alpha-divergence.
        eta: weight of the D_pef loss, two separate means (the authors' scripts average all rows together,
            which makes their effective weight eta / 8).
        rkl_coef: weight of the reverse KL on all training rows, against an online reference.
        clip_low, clip_high: PPO-clip; GRPO 0.2 / 0.2, the others 0.2 / 0.28 [code].
        dynamic_sampling: groups with equal rewards are replaced by further draws (DAPO).
        overlong_shaping: soft penalty before the token limit (DAPO).
        entropy_coef: of an entropy bonus on the tokens that explore; 0 as in the authors' scripts [code].
    """

    trains_on: Literal["all", "exploration"]
    divergence: str | None = None
    alpha: float | None = None
    eta: float = 0.0
    rkl_coef: float = 0.0
    clip_low: float = 0.2
    clip_high: float = 0.28
    dynamic_sampling: bool = False
    overlong_shaping: bool = False
    entropy_coef: float = 0.0

    @property
    def needs_reference(self) -> bool:
        """Whether an online reference model runs beside the policy."""
        return self.rkl_coef > 0 or self.divergence == "js_definition"

    @property
    def rehearses_all(self) -> bool:
        """Whether the stored answers of all prompts are rehearsed, not those of D_pef."""
        return self.trains_on == "all" and self.divergence is not None

    @property
    def weight(self) -> float:
        """Weight of the divergence, 0 without one."""
        return self.rkl_coef or self.eta

    @property
    def curvature(self) -> float:
        """f''(1) of the divergence: 1/4 for JS; 1 for forward KL, alpha, reverse KL and -log u."""
        return 0.25 if self.divergence in ("js", "js_definition") else 1.0

    def weighing(self, weight: float) -> MethodConfig:
        """The same method with another weight of its divergence."""
        return replace(self, rkl_coef=weight) if self.rkl_coef else replace(self, eta=weight)


# eta: forward KL 0.2, JS 0.5, RKL 0.04 were set in a feasibility trial on another world, before this one existed; alpha
# takes forward KL's, whose curvature f''(1) = 1 it shares. The paper's 0.01 to 0.2 belong to lr 1e-6.
METHOD_CONFIGS: dict[str, MethodConfig] = {
    "grpo": MethodConfig("all", clip_high=0.2),
    "dapo": MethodConfig("all", dynamic_sampling=True, overlong_shaping=True),
    "rkl": MethodConfig("all", rkl_coef=0.04),
    "alpha_0.2": MethodConfig("exploration", divergence="alpha", alpha=0.2, eta=0.2),
    "alpha_0.5": MethodConfig("exploration", divergence="alpha", alpha=0.5, eta=0.2),
    "alpha_0.8": MethodConfig("exploration", divergence="alpha", alpha=0.8, eta=0.2),
    "dph_f": MethodConfig("exploration", divergence="forward_kl", eta=0.2),
    "dph_js": MethodConfig("exploration", divergence="js", eta=0.5),
    "dph_js_definition": MethodConfig("exploration", divergence="js_definition", eta=0.5),
}
# What the controls leave out or replace, all else equal. `grpo_dexp` is GRPO without D_pef's prompts: data selection
# alone; with clip_high=0.28 it is DPH with eta = 0. `sft_rehearsal` has the curvature and the weight of forward KL.
# `dph_f_all` is DPH-F without the partition. DDRL, its model, takes forward KL to a data distribution on all of the
# data; ours has no data but the initial policy's own correct answers, so it stays a rehearsal of that policy.
CONTROL_CONFIGS: dict[str, MethodConfig] = {
    "grpo_dexp": MethodConfig("exploration", clip_high=0.2),
    "sft_rehearsal": MethodConfig("exploration", divergence="likelihood", eta=0.2),
    "dph_f_all": MethodConfig("all", divergence="forward_kl", eta=0.2),
}
_CONFIGS = METHOD_CONFIGS | CONTROL_CONFIGS
_APPLIES = {
    "any": (lambda method: True, ""),
    "weighted": (lambda method: method.weight > 0, "it has no divergence to weigh"),
    "rehearsing": (lambda method: method.divergence is not None, "it rehearses no stored answer"),
    "partitioned": (lambda method: method.trains_on == "exploration", "it trains on all prompts, without a partition"),
    "js": (lambda method: (method.divergence or "").startswith("js"), "its divergence is not JS"),
}


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One RL run. The batch keeps the authors' proportions: an eighth as many rehearsal rows as RL rows [code].

    Args:
        iterations: rollout batches.
        prompts, rollouts: prompts a batch and answers a prompt (authors: 128 x 16).
        mini_batches: optimizer steps a batch (authors: 128 prompts in mini-batches of 64, so 2).
        rehearsal_rows: stored answers a batch (authors: 256 beside 2,048).
        lr: constant, no warm-up [code]; 1e-6 at 8B.
        dual_clip: 3.0 [code].
        max_new_tokens: of a rollout.
        top_p: nucleus that rollouts are drawn from (authors: 0.9, with log-probs without it, a hidden bias).
        overlong_buffer: tokens before the limit in which DAPO's penalty grows from 0 to 1.
        max_draws: rounds of rollouts that dynamic sampling may take for one batch.
        token_budget: padded tokens a micro-batch; changes memory, not the result.
        diagnose_every: iterations between measurements of the KL to the base, 0 for never.
    """

    iterations: int = 60
    prompts: int = 16
    rollouts: int = 8
    mini_batches: int = 2
    rehearsal_rows: int = 16
    lr: float = 3e-4
    max_grad_norm: float = 1.0
    dual_clip: float = 3.0
    max_new_tokens: int = 48
    top_p: float = 1.0
    overlong_buffer: int = 8
    max_draws: int = 3
    token_budget: int = 8192
    diagnose_every: int = 5


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """Draws a problem for each suite; after the iterations in `steps`, in-domain Pass@k is measured on the way."""

    samples: Mapping[str, int] = field(
        default_factory=lambda: {"in_domain": 64, "cross_domain": 32, "out_of_domain": 32}
    )
    steps: tuple[int, ...] = (5, 15, 30)
    step_samples: int = 16
    max_new_tokens: int = 48
    draw_seed: int = 7
    base_samples: int = 4


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
        if self.method not in _CONFIGS:
            raise ValueError(f"unknown method {self.method!r}; known: {', '.join(_CONFIGS)}")
        key, _ = parse(self.variant)
        if key == MAIN:
            return
        applies, why_not = _APPLIES[VARIANTS[key].applies]
        if not applies(_CONFIGS[self.method]):
            raise ValueError(f"variant {self.variant!r} means nothing for {self.method}: {why_not}")
        if key in (*_WEIGHTS, *_FIELDS) and self.method_config == _CONFIGS[self.method]:
            raise ValueError(f"variant {self.variant!r} of {self.method} is its main run: choose another value")

    @property
    def name(self) -> str:
        return f"{self.method}-{self.variant}-seed{self.seed}"

    def setting(self, key: str) -> Any:
        """Value of a setting, None where this arm does not set it."""
        name, value = parse(self.variant)
        return value if name == key else None

    @property
    def method_config(self) -> MethodConfig:
        """What is trained: the method with this arm's setting."""
        config, (key, value) = _CONFIGS[self.method], parse(self.variant)
        if key in _WEIGHTS:
            return config.weighing(_WEIGHTS[key](config, value))
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


# What a variant's value does to a method's weight, and which of the method's other settings it is.
_WEIGHTS = {
    "eta": lambda config, value: value,
    "strength": lambda config, value: _CONFIGS["dph_f"].eta * _CONFIGS["dph_f"].curvature / config.curvature,
    "authors_eta": lambda config, value: config.weight / value,
    "js_scale": lambda config, value: config.weight * value,  # the loss is linear in f
}
_FIELDS = {"clip_high": "clip_high", "entropy": "entropy_coef"}


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything that a run of all notebooks needs to know.

    Args:
        seeds: of the main runs of the paper's methods and of the controls.
        ablation_seeds: of ablations and studies, but for the controls' main runs.
        studies: those that a run of all notebooks makes, as `studies.chosen` reads them.
        study_comparisons: of each study at most so many, None for all.
        cost_iterations: measured for the cost.
    """

    name: ProfileName
    world: WorldConfig
    model: ModelConfig
    sft: SftConfig
    presample: PresampleConfig
    train: TrainConfig
    evaluation: EvalConfig
    seeds: tuple[int, ...]
    ablation_seeds: tuple[int, ...]
    cost_iterations: int
    studies: str = ""
    study_comparisons: int | None = None

    def main_runs(self) -> list[RunConfig]:
        return [RunConfig(method, "main", seed) for method in METHOD_CONFIGS for seed in self.seeds]

    def ablation_runs(self) -> list[RunConfig]:
        """Table 5 (eta), Table 4 (threshold) and Table 3 (RL on the sums)."""
        arms = [(m, f"eta={eta}") for eta in (0.025, 0.125) for m in ("dph_js", "dph_js_definition")]
        arms += [(m, f"threshold={self.presample.k}") for m in ("dph_f", "dph_js")]
        arms += [(m, "domain=sums") for m in ("grpo", "dph_f", "dph_js")]
        return [RunConfig(method, variant, seed) for method, variant in arms for seed in self.ablation_seeds]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def profile(name: str, seeds: str = "", study_seeds: str = "") -> Profile:
    """The settings of a profile.

    Args:
        name: of `PROFILES`.
        seeds: other seeds for main runs and controls, see `variants.parse_seeds`; "" for the profile's.
        study_seeds: the same for ablations and studies.

    Raises:
        ValueError: no such profile, or seeds that are none.

    >>> profile("cpu").presample.k, profile("cpu", seeds="5").seeds
    (8, (0, 1, 2, 3, 4))
    """
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; known: {', '.join(PROFILES)}")
    cpu = Profile(
        "cpu", WorldConfig(), ModelConfig(), SftConfig(), PresampleConfig(), TrainConfig(), EvalConfig(),
        seeds=(0, 1, 2), ablation_seeds=(0,), cost_iterations=8,
    )  # fmt: skip
    chosen = cpu if name == "cpu" else _smoke(cpu)
    if seeds:
        chosen = replace(chosen, seeds=parse_seeds(seeds))
    if study_seeds:
        chosen = replace(chosen, ablation_seeds=parse_seeds(study_seeds))
    return chosen


def _smoke(cpu: Profile) -> Profile:
    """Every step of `cpu` on a few problems: shows that everything runs, says nothing about the method."""
    few = {"train": 24, "in_domain": 8, "cross_domain": 6, "out_of_domain": 10, "sums_train": 16}
    return replace(
        cpu,
        name="smoke",
        world=replace(cpu.world, problems=few),
        model=ModelConfig(hidden_size=96, intermediate_size=192, layers=2),
        sft=replace(cpu.sft, steps=200, batch=48),
        presample=replace(cpu.presample, threshold=1),
        train=replace(cpu.train, iterations=2, prompts=4, rollouts=4, rehearsal_rows=4, diagnose_every=1),
        evaluation=EvalConfig(
            samples={"in_domain": 16, "cross_domain": 16, "out_of_domain": 16}, steps=(1,), step_samples=8
        ),
        seeds=(0,),
        ablation_seeds=(0,),
        cost_iterations=1,
        studies="controls,eta,answers",
        study_comparisons=1,
    )
