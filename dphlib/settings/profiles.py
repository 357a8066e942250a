"""Profiles: every setting of a run of all notebooks.

The profiles differ in configuration only; the code is the same in all. What the settings mean, and where each of the
paper's values comes from, is in `stages` and `methods`; `gpu` has the values of the GPU profiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from dphlib.runtime.files import InputError, unknown
from dphlib.runtime.machine import derive_seed
from dphlib.settings.gpu import GPU_PROFILES, SMOKE, smallest
from dphlib.settings.lm import LM, LM_SMOKE
from dphlib.settings.methods import CONFIGS, DECISIVE, HEADLINE, METHOD_CONFIGS, MethodConfig
from dphlib.settings.stages import (
    BackendConfig,
    BaseConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    PresampleConfig,
    PretrainedConfig,
    SftConfig,
    TrainConfig,
    TuningConfig,
    WorldConfig,
)
from dphlib.settings.variants import MAIN, RunConfig, main_run_text, parse_seeds
from dphlib.types import base_of

ProfileName = Literal[
    "smoke", "cpu", "lm-smoke", "lm", "gpu24", "gpu80", "paper", "gpu24-smoke", "gpu80-smoke", "paper-smoke"
]
PROFILES: tuple[str, ...] = get_args(ProfileName)


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything that a run of all notebooks needs to know; the defaults are the profile `cpu`.

    Args:
        seeds: of the main runs of the paper's methods and of the controls.
        most_seeds: of these, for the methods that are not in `methods.DECISIVE`.
        ablation_seeds: of ablations and studies, but for the controls' main runs.
        ablations: whether the arms of Tables 3 to 5 are part of every run.
        studies: those that a run of all notebooks makes, as `studies.chosen` reads them.
        study_comparisons: of each study at most so many, None for all.
        cost_iterations: measured for the cost.
        tuning: what is trained.
        backend: what samples.
        base: a base model of the hub; None for the CPU world's, which a notebook trains.
        pretrained: what the CPU world's base is fine-tuned from; None for a small model from random weights.
        data: data sets; None for the CPU world.
        weights: weight of the divergence for methods that have another one here than in `methods`.
        methods: those that the main runs and the ablations train.
        bases: how many base models the CPU world has; see `base_index`.
        shipped: folder below `artifacts/` with bases that are trained already; "" where each is trained here.
        draws_per_seed: whether each seed has a pre-sampling of its own; else all share one.
    """

    name: ProfileName
    world: WorldConfig = field(default_factory=WorldConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    presample: PresampleConfig = field(default_factory=PresampleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    seeds: tuple[int, ...] = (0, 1, 2)
    most_seeds: int = 6
    ablation_seeds: tuple[int, ...] = (0,)
    ablations: bool = True
    cost_iterations: int = 8
    studies: str = ""
    study_comparisons: int | None = None
    tuning: TuningConfig = field(default_factory=TuningConfig)
    backend: BackendConfig = field(default_factory=BackendConfig)
    base: BaseConfig | None = None
    pretrained: PretrainedConfig | None = None
    data: DataConfig | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    methods: tuple[str, ...] = tuple(METHOD_CONFIGS)
    bases: int = 6
    shipped: str = "bases"
    draws_per_seed: bool = True

    def base_index(self, seed: int) -> int:
        """The base that the runs with a seed start from: seed modulo the number of bases.

        >>> [Profile("cpu").base_index(seed) for seed in (0, 5, 6, 13)]
        [0, 5, 0, 1]
        """
        return base_of(seed, self.bases)

    @property
    def used_bases(self) -> dict[int, int]:
        """The bases of the profile's seeds, each with the first seed that starts from it.

        >>> profile("cpu", seeds="2,8,6").used_bases
        {0: 6, 2: 2}
        """
        seeds = [*self.seeds, *self.ablation_seeds]
        return {
            index: next(s for s in seeds if self.base_index(s) == index)
            for index in sorted({*map(self.base_index, seeds)})
        }

    def sft_config(self, index: int) -> SftConfig:
        """The fine-tuning of a base of the CPU world: its index is the seed."""
        return replace(self.sft, seed=index)

    def presample_config(self, seed: int, config: PresampleConfig | None = None) -> PresampleConfig:
        """The pre-sampling of a seed's runs: `config`, the profile's unless given, with a draw of the seed's own."""
        config = config or self.presample
        return replace(config, seed=derive_seed("draw", config.seed, seed)) if self.draws_per_seed else config

    @property
    def small(self) -> bool:
        """Whether the policy is the CPU world's small Llama: minutes on a CPU in fp32, the same bits each time."""
        return self.base is None and self.pretrained is None

    @property
    def described(self) -> str:
        """What ours are of: model, tuning, training data. "" for the CPU world, of which the documents speak.

        >>> profile("gpu24").described
        'Qwen/Qwen2.5-1.5B-Instruct (qlora) trained on gsm8k_train'
        """
        if self.pretrained is not None:
            return f"{self.pretrained.name} ({self.tuning.kind}) fine-tuned and trained on the CPU world"
        if self.base is None or self.data is None:
            return ""
        return f"{self.base.name} ({self.tuning.kind}) trained on {', '.join(self.data.suites['train'])}"

    def method_config(self, run: RunConfig) -> MethodConfig:
        """What a run of this profile trains.

        Raises:
            ValueError: a variant whose weight is that of the profile's main run.
        """
        if self.is_main(run) and run.variant != MAIN:
            raise InputError(main_run_text(run))
        return run.configured(self._configs)

    @property
    def _configs(self) -> dict[str, MethodConfig]:
        return CONFIGS | {name: CONFIGS[name].weighing(weight) for name, weight in self.weights.items()}

    def is_main(self, run: RunConfig) -> bool:
        """Whether a run's weight is that of its method's main run in this profile, whatever its variant is called."""
        configs = self._configs
        return run.variant == MAIN or (run.sets_weight and run.configured(configs) == configs[run.method])

    def weight(self, method: str) -> float:
        """Weight of a method's divergence in its main run."""
        return self.method_config(RunConfig(method, MAIN, 0)).weight

    @property
    def table5_etas(self) -> tuple[float, float]:
        """The two lower weights of Table 5: the highest / 20 and / 4, as the paper's 0.01, 0.05 and 0.2."""
        highest = self.weight("dph_js")
        return highest / 20, highest / 4

    def waypoints(self, run: RunConfig) -> tuple[int, ...]:
        """Iterations after which a run is measured on its way.

        Where runs have a stopping point, main runs and those of another weight or length, to their end; else the main
        runs of `HEADLINE`, and runs of another length.
        """
        steps, length = self.evaluation.steps, run.setting("iterations")
        if self.evaluation.stops:
            ends = length or self.train.iterations
            on_the_way = run.variant == MAIN or run.setting("eta") or length
            return tuple(range(steps[0], ends + 1, steps[0])) if steps and on_the_way else ()
        if length:
            return tuple(step for step in (*steps, self.train.iterations) if step < length)
        return steps if run.variant == MAIN and run.method in HEADLINE else ()

    def quickness(self, run: RunConfig) -> tuple[int, bool, bool]:
        """Sorts slow runs first: long ones, an online reference, the full prompt set."""
        method, length = self.method_config(run), run.train_config(self.train).iterations
        return -length, not (method.needs_reference or method.entropy_coef > 0), method.divergence is None

    def main_runs(self) -> list[RunConfig]:
        return [RunConfig(method, MAIN, seed) for method in self.methods for seed in self.seeds_of(method)]

    def seeds_of(self, method: str) -> tuple[int, ...]:
        """The seeds of a method's main runs.

        >>> [len(profile("cpu", seeds="18").seeds_of(method)) for method in ("dph_f", "alpha_0.5")]
        [18, 6]
        """
        return self.seeds if method in DECISIVE else self.seeds[: self.most_seeds]

    def ablation_runs(self) -> list[RunConfig]:
        """Table 5 (eta), Table 4 (threshold) and Table 3 (RL on the sums)."""
        if not self.ablations:
            return []
        arms = [(m, f"eta={eta:g}") for eta in self.table5_etas for m in ("dph_js", "dph_js_definition")]
        arms += [(m, f"threshold={self.presample.k}") for m in ("dph_f", "dph_js")]
        if self.data is None or "sums_train" in self.data.suites:
            arms += [(m, "domain=sums") for m in ("grpo", "dph_f", "dph_js")]
        arms = [(method, variant) for method, variant in arms if method in self.methods]
        return [RunConfig(method, variant, seed) for method, variant in arms for seed in self.ablation_seeds]


_SMALLEST_CPU = Profile(
    "smoke",
    world=WorldConfig(
        problems={
            "train": 24,
            "validation": 6,
            "in_domain": 8,
            "cross_domain": 6,
            "out_of_domain": 10,
            "sums_train": 16,
        }
    ),
    model=ModelConfig(hidden_size=96, intermediate_size=192, layers=2),
    sft=SftConfig(steps=200, batch=48),
    presample=PresampleConfig(threshold=1),
    train=TrainConfig(iterations=2, prompts=4, rollouts=4, rehearsal_rows=4, diagnose_every=1),
    evaluation=EvalConfig(samples={"in_domain": 16, "cross_domain": 16, "out_of_domain": 16}, steps=(1,)),
    seeds=(0,),
    cost_iterations=1,
    studies="controls,eta,answers,direction",
    study_comparisons=1,
    bases=1,
    shipped="",
)
"""Every step of `cpu` on a few problems: shows that everything runs, says nothing about the method."""


_ONE_BASE = {"bases": 1, "shipped": "", "draws_per_seed": False}
"""Of the profiles whose model is given: it is one, and a pre-sampling of it takes minutes to hours."""


def profile(name: str, seeds: str = "", study_seeds: str = "") -> Profile:
    """The settings of a profile.

    Args:
        name: of `PROFILES`; one with `-smoke` is a few problems and steps.
        seeds: other seeds for main runs and controls, see `variants.parse_seeds`; "" for the profile's.
        study_seeds: the same for ablations and studies.

    Raises:
        ValueError: no such profile, or what is not seeds.

    >>> profile("cpu").presample.k, profile("cpu", seeds="5").seeds
    (8, (0, 1, 2, 3, 4))
    """
    if name not in PROFILES:
        raise unknown("profile", name, PROFILES)
    chosen = _SMALLEST_CPU if name == "smoke" else Profile("cpu")
    if name not in ("smoke", "cpu"):
        chosen = replace(chosen, **_ONE_BASE)  # type: ignore[arg-type]
    if name in ("lm", "lm-smoke"):
        chosen = replace(chosen, name=name, **(LM if name == "lm" else LM_SMOKE))  # type: ignore[arg-type]
    if (full := name.removesuffix(SMOKE)) in GPU_PROFILES:
        settings = GPU_PROFILES[full]
        chosen = replace(chosen, name=name, **(settings if name == full else smallest(settings)))  # type: ignore[arg-type]
    if seeds:
        chosen = replace(chosen, seeds=parse_seeds(seeds))
    if study_seeds:
        chosen = replace(chosen, ablation_seeds=parse_seeds(study_seeds))
    return chosen
