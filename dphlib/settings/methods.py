"""The methods: the closed set of their names, and what sets each apart from the others.

A method is a row of `METHOD_CONFIGS` or `CONTROL_CONFIGS`; how figures show it is in `analysis.labels`. How long and on
what it is trained is the profile's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from dphlib.generators import GENERATORS, Generator
from dphlib.rivals import RIVALS


@dataclass(frozen=True, slots=True)
class MethodConfig:
    """What sets one method apart from the others.

    Args:
        explores: prompts that are rolled out: `all` (the baselines), or those of D_exp (`exploration`).
        rehearses: prompts whose stored answers are rehearsed: `none` (the baselines), those of D_pef (`near_perfect`),
            or `all` that have one.
        divergence: generator on the stored answers, or `likelihood` (plain -log pi_theta); None where nothing is
            rehearsed.
        alpha: of the alpha-divergence.
        eta: weight of the D_pef loss, two separate means (the authors' scripts average all rows together,
            which makes their effective weight eta / 8).
        rkl_coef: weight of the reverse KL on all training rows, against an online reference.
        rkl_estimator: `k3` as the authors have it, whose expected gradient is forward KL's, or `k2`, whose is reverse
            KL's; see `losses`.
        clip_low, clip_high: PPO-clip; GRPO 0.2 / 0.2, the others 0.2 / 0.28 [code].
        dynamic_sampling: groups with equal rewards are replaced by further draws (DAPO).
        overlong_shaping: soft penalty before the token limit (DAPO).
        entropy_coef: of an entropy bonus on the tokens that explore; 0 as in the authors' scripts [code].
        rival: a name of `rivals.RIVALS`, whose rule takes the place of GRPO's; None for GRPO's.
        base_share: of the initial policy's weights in the weights that are kept in the end.
    """

    explores: Literal["all", "exploration"]
    rehearses: Literal["none", "near_perfect", "all"] = "none"
    divergence: str | None = None
    alpha: float | None = None
    eta: float = 0.0
    rkl_coef: float = 0.0
    rkl_estimator: Literal["k3", "k2"] = "k3"
    clip_low: float = 0.2
    clip_high: float = 0.28
    dynamic_sampling: bool = False
    overlong_shaping: bool = False
    entropy_coef: float = 0.0
    rival: str | None = None
    base_share: float = 0.0

    def __post_init__(self) -> None:
        if (self.rehearses == "none") != (self.divergence is None):
            raise ValueError(
                f"rehearses is {self.rehearses!r} and divergence {self.divergence!r}: give both or neither"
            )

    @property
    def needs_reference(self) -> bool:
        """Whether an online reference model runs beside the policy."""
        return self.rkl_coef > 0 or self.divergence == "js_definition"

    @property
    def partitioned(self) -> bool:
        """Whether the partition decides what it trains on."""
        return self.explores == "exploration" or self.rehearses == "near_perfect"

    @property
    def weight(self) -> float:
        """Weight of the divergence, 0 without one."""
        return self.rkl_coef or self.eta

    @property
    def generator(self) -> Generator:
        """The generator whose divergence this is near the reference: for RKL's term and -log u that of a KL."""
        alike = {"likelihood": "forward_kl", "js_definition": "js"}
        name = self.divergence or "reverse_kl"
        return GENERATORS[alike.get(name, name)]

    @property
    def curvature(self) -> float:
        """f''(1) of the divergence.

        Raises:
            ValueError: f has a kink at u = 1.
        """
        if self.generator.second_derivative_at_1 is None:
            raise ValueError(f"{self.divergence} has a kink at u = 1 and no f''(1): it has no equal strength")
        return self.generator.second_derivative_at_1

    def weighing(self, weight: float) -> MethodConfig:
        """The same method with another weight of its divergence."""
        return replace(self, rkl_coef=weight) if self.rkl_coef else replace(self, eta=weight)


# Forward KL's 0.2 was set in a feasibility trial on another world; the others have its strength, eta f''(1). So have
# the authors' ranges: 0.01 to 0.05 for forward KL, alpha and RKL, 0.05 to 0.2 for JS [code], at lr 1e-6.
METHOD_CONFIGS: dict[str, MethodConfig] = {
    "grpo": MethodConfig("all", clip_high=0.2),
    "dapo": MethodConfig("all", dynamic_sampling=True, overlong_shaping=True),
    "rkl": MethodConfig("all", rkl_coef=0.2),
    "alpha_0.2": MethodConfig("exploration", "near_perfect", "alpha", alpha=0.2, eta=0.2),
    "alpha_0.5": MethodConfig("exploration", "near_perfect", "alpha", alpha=0.5, eta=0.2),
    "alpha_0.8": MethodConfig("exploration", "near_perfect", "alpha", alpha=0.8, eta=0.2),
    "dph_f": MethodConfig("exploration", "near_perfect", "forward_kl", eta=0.2),
    "dph_js": MethodConfig("exploration", "near_perfect", "js", eta=0.8),
    "dph_js_definition": MethodConfig("exploration", "near_perfect", "js_definition", eta=0.8),
}
# What the controls leave out or replace, all else equal. `grpo_dexp` is GRPO without D_pef's prompts: data selection
# alone; with clip_high=0.28 it is DPH with eta = 0. `sft_rehearsal` has the curvature and the weight of forward KL.
# `dph_f_all` is DPH-F without the partition. DDRL, its model, takes forward KL to a data distribution on all of the
# data; ours has no data but the initial policy's own correct answers, so it stays a rehearsal of that policy. The next
# two are the factorial's other cells: all prompts or D_exp explored, D_pef or all rehearsed. The last two have the
# reverse KL that RKL's k3 has only in value: on the policy's own answers, and on DPH-F's stored answers.
CONTROL_CONFIGS: dict[str, MethodConfig] = {
    "grpo_dexp": MethodConfig("exploration", clip_high=0.2),
    "sft_rehearsal": MethodConfig("exploration", "near_perfect", "likelihood", eta=0.2),
    "dph_f_all": MethodConfig("all", "all", "forward_kl", eta=0.2),
    "dph_f_explore_all": MethodConfig("all", "near_perfect", "forward_kl", eta=0.2),
    "dph_f_rehearse_all": MethodConfig("exploration", "all", "forward_kl", eta=0.2),
    "rkl_k2": MethodConfig("all", rkl_coef=0.2, rkl_estimator="k2"),
    "dph_rkl": MethodConfig("exploration", "near_perfect", "reverse_kl", eta=0.2),
    **{name: MethodConfig("all", rival=name, **{"clip_high": 0.2, **rival.changes}) for name, rival in RIVALS.items()},
}

CONFIGS = METHOD_CONFIGS | CONTROL_CONFIGS
METHODS: tuple[str, ...] = ("base", *METHOD_CONFIGS)
"""The base and the nine methods of the paper."""
CONTROLS: tuple[str, ...] = tuple(CONTROL_CONFIGS)
"""Not the paper's: is it the divergence, its direction, the data, the partition; and what the rivals do."""
DECISIVE: tuple[str, ...] = (
    *("grpo", "dapo", "rkl", "dph_f", "dph_js"),
    *("grpo_dexp", "dph_f_all", "rkl_k2", "dph_rkl"),
)
"""Those that the headline claims compare: they have all seeds, the others at most `Profile.most_seeds`."""
HEADLINE: tuple[str, ...] = ("base", "grpo", "dapo", "rkl", "dph_f", "dph_js")
"""Those that most figures show, and of which Pass@k is measured on the way."""
