"""Profiles and arms: every setting of a run of all notebooks, and the one in which an arm differs.

The profiles differ in configuration only; the code is the same in all. What the settings mean, and where each of the
paper's values comes from, stands in `stage_config` and `methods`, whose names are handed on here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import ceil
from typing import Any, Literal, get_args

from dphlib.settings.gpu import GPU_PROFILES, SMOKE, chosen_by_environment, smallest, within_context
from dphlib.settings.methods import CONTROL_CONFIGS, METHOD_CONFIGS, MethodConfig
from dphlib.settings.stages import (
    BackendConfig,
    BaseConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    PresampleConfig,
    SftConfig,
    TrainConfig,
    TuningConfig,
    WorldConfig,
)
from dphlib.settings.variants import MAIN, VARIANTS, parse, parse_seeds
from dphlib.types import HEADLINE

__all__ = [
    "CONTROL_CONFIGS", "METHOD_CONFIGS", "PROFILES", "BackendConfig", "BaseConfig", "DataConfig", "EvalConfig",
    "MethodConfig", "ModelConfig", "PresampleConfig", "Profile", "ProfileName", "RunConfig", "SftConfig", "TrainConfig",
    "TuningConfig", "WorldConfig", "profile",
]  # fmt: skip

ProfileName = Literal["smoke", "cpu", "gpu24", "gpu80", "paper", "gpu24-smoke", "gpu80-smoke", "paper-smoke"]
PROFILES: tuple[str, ...] = get_args(ProfileName)

_CONFIGS = METHOD_CONFIGS | CONTROL_CONFIGS
_IS_MAIN = "variant {0.variant!r} of {0.method} is its main run: choose another value"
_APPLIES = {
    "any": (lambda method: True, ""),
    "weighted": (lambda method: method.weight > 0, "it has no divergence to weigh"),
    "rehearsing": (lambda method: method.divergence is not None, "it rehearses no stored answer"),
    "partitioned": (lambda method: method.trains_on == "exploration", "it trains on all prompts, without a partition"),
    "js": (lambda method: (method.divergence or "").startswith("js"), "its divergence is not JS"),
}


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
        if key in _FIELDS and self.method_config == _CONFIGS[self.method]:
            raise ValueError(_IS_MAIN.format(self))

    @property
    def name(self) -> str:
        return f"{self.method}-{self.variant}-seed{self.seed}"

    def setting(self, key: str) -> Any:
        """Value of a setting, None where this arm does not set it."""
        name, value = parse(self.variant)
        return value if name == key else None

    @property
    def method_config(self) -> MethodConfig:
        """What is trained with the weights of `methods`; a profile may have others: `Profile.method_config`."""
        return self.configured(_CONFIGS)

    def configured(self, configs: Mapping[str, MethodConfig]) -> MethodConfig:
        """What is trained: the method of `configs` with this arm's setting."""
        config, (key, value) = configs[self.method], parse(self.variant)
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


# What a variant's value does to a method's weight, and which of the method's other settings it is.
_WEIGHTS = {
    "eta": lambda configs, config, value: value,
    "strength": lambda configs, config, value: configs["dph_f"].eta * configs["dph_f"].curvature / config.curvature,
    "authors_eta": lambda configs, config, value: config.weight / value,
    "js_scale": lambda configs, config, value: config.weight * value,  # the loss is linear in f
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
        tuning: what is trained.
        backend: what samples.
        base: a base model of the hub; None for the CPU world's, which the first notebook trains.
        data: data sets; None for the CPU world.
        weights: weight of the divergence for methods that have another one here than in `methods`.
        methods: of the paper, those that the main runs and the ablations train.
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
    tuning: TuningConfig = field(default_factory=TuningConfig)
    backend: BackendConfig = field(default_factory=BackendConfig)
    base: BaseConfig | None = None
    data: DataConfig | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    methods: tuple[str, ...] = tuple(METHOD_CONFIGS)

    @property
    def described(self) -> str:
        """What ours are of: model, tuning, training data. "" for the CPU world, of which the documents speak.

        >>> profile("gpu24").described
        'Qwen/Qwen2.5-1.5B-Instruct (qlora) trained on gsm8k_train'
        """
        if self.base is None or self.data is None:
            return ""
        return f"{self.base.name} ({self.tuning.kind}) trained on {', '.join(self.data.suites['train'])}"

    def method_config(self, run: RunConfig) -> MethodConfig:
        """What a run of this profile trains.

        Raises:
            ValueError: a variant whose weight is that of the profile's main run.
        """
        if self.is_main(run) and run.variant != MAIN:
            raise ValueError(_IS_MAIN.format(run))
        return run.configured(self._configs)

    @property
    def _configs(self) -> dict[str, MethodConfig]:
        return _CONFIGS | {name: _CONFIGS[name].weighing(weight) for name, weight in self.weights.items()}

    def is_main(self, run: RunConfig) -> bool:
        """Whether a run's weight is that of its method's main run in this profile, whatever its variant is called."""
        key, _ = parse(run.variant)
        return key == MAIN or (key in _WEIGHTS and run.configured(self._configs) == self._configs[run.method])

    def weight(self, method: str) -> float:
        """Weight of a method's divergence in its main run."""
        return self.method_config(RunConfig(method, "main", 0)).weight

    @property
    def table5_etas(self) -> tuple[float, float]:
        """The two lower weights of Table 5; at the paper's learning rate its own."""
        return (0.025, 0.125) if self.base is None else (0.01, 0.05)

    def waypoints(self, run: RunConfig) -> tuple[int, ...]:
        """Iterations after which a run is measured on its way: main runs of `HEADLINE`, and runs of another length."""
        steps = self.evaluation.steps
        if run.setting("iterations"):
            steps = tuple(step for step in (*steps, self.train.iterations) if step < run.setting("iterations"))
        shown = run.variant == "main" and run.method in HEADLINE
        return steps if shown or run.setting("iterations") else ()

    def quickness(self, run: RunConfig) -> tuple[int, bool, bool]:
        """Sorts slow runs first: long ones, an online reference, the full prompt set."""
        method, length = self.method_config(run), run.train_config(self.train).iterations
        return -length, not (method.needs_reference or method.entropy_coef > 0), method.divergence is None

    def main_runs(self) -> list[RunConfig]:
        return [RunConfig(method, "main", seed) for method in self.methods for seed in self.seeds]

    def ablation_runs(self) -> list[RunConfig]:
        """Table 5 (eta), Table 4 (threshold) and Table 3 (RL on the sums)."""
        arms = [(m, f"eta={eta}") for eta in self.table5_etas for m in ("dph_js", "dph_js_definition")]
        arms += [(m, f"threshold={self.presample.k}") for m in ("dph_f", "dph_js")]
        if self.data is None or "sums_train" in self.data.suites:
            arms += [(m, "domain=sums") for m in ("grpo", "dph_f", "dph_js")]
        arms = [(method, variant) for method, variant in arms if method in self.methods]
        return [RunConfig(method, variant, seed) for method, variant in arms for seed in self.ablation_seeds]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def profile(name: str, seeds: str = "", study_seeds: str = "") -> Profile:
    """The settings of a profile.

    Args:
        name: of `PROFILES`. Those of GPUs can be changed by the environment, see `gpu_profiles.ENVIRONMENT`; with
            `-smoke` each is a few problems and steps.
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
    if (full := name.removesuffix(SMOKE)) in GPU_PROFILES:
        settings = chosen_by_environment(GPU_PROFILES[full])
        settings = within_context(settings if name == full else smallest(settings))
        chosen = replace(cpu, name=name, **settings)  # type: ignore[arg-type]
    else:
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
