r"""The partitioned loss L = L_exp + eta L_pef, and group advantages.

Both sets travel in one micro-batch; each token carries the id of the loss it belongs to:

    IGNORE                 prompt, padding, or nothing to learn
    EXPLORE                on-policy answer to a prompt of D_exp: PPO-clip on group advantages, no KL term
    NEAR_PERFECT           stored reference answer to a prompt of D_pef: f(exp d), d = log pi_theta/pi_ref
    ON_POLICY_DIVERGENCE   on-policy answer to a prompt of D_pef: the second half of JS by its definition

The two means are separate. Their denominators can be given (`count_denominators` over the whole batch), so the loss
does not depend on how micro-batches were cut; losses and gradients of the micro-batches then simply add up.

How this differs from the authors' code, and JS by its definition, are in `docs/method.md`. GRPO is a batch without
NEAR_PERFECT tokens. Not here: choosing ids, dynamic sampling, overlong shaping; they are the trainer's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from dphlib.divergences import generator, log_over_mean

IGNORE = 0
EXPLORE = 1
NEAR_PERFECT = 2
ON_POLICY_DIVERGENCE = 3
_LOSSES = (EXPLORE, NEAR_PERFECT, ON_POLICY_DIVERGENCE)

Aggregation = Literal["token_mean", "sequence_mean", "dr_grpo"]
MAX_LOG_RATIO = 20.0
"""From this log importance ratio (nats) on, the ratio grows linearly in it: exp(20) (1 + excess)."""

_k3 = generator("forward_kl")


def negative_log_likelihood(log_ratio: Tensor) -> Tensor:
    """-d, d = log pi_theta - log pi_ref: -log pi_theta but for a constant, whose gradient does not vanish at d = 0."""
    return -log_ratio


def divergence_of(
    name: str | None, alpha: float | None = None
) -> Callable[[Tensor], Tensor] | Literal["js_definition"]:
    """What `partitioned_loss` takes as `divergence`, by the name that a method has for it.

    Args:
        name: a key of `divergences.DIVERGENCES`, `js_definition`, or `likelihood`, which is plain -log pi_theta; None
            rehearses nothing, so any function will do.
    """
    if name == "js_definition":
        return "js_definition"
    if name == "likelihood":
        return negative_log_likelihood
    return generator(name or "forward_kl", **({} if alpha is None else {"alpha": alpha}))


def group_advantages(rewards_P_G: Tensor, *, scale: Literal["std", "none"] = "std", eps: float = 1e-6) -> Tensor:
    """GRPO's advantages: (reward - mean of its group) / (standard deviation of its group + eps).

    The standard deviation is the sample's (divisor n - 1). A group of equal rewards, and a group of one,
    get exactly zero: rounding of the mean must not become an advantage. NaN marks an answer that could not
    be judged; it is left out of mean and deviation and gets zero.

    Args:
        rewards_P_G: rewards, one row per problem, one column per sample.
        scale: "std" as above, "none" to only subtract the mean (Dr. GRPO).
        eps: added to the deviation.

    Returns:
        Advantages of the same shape, in the dtype of the rewards (float32 for integers), without gradient.

    >>> group_advantages(torch.tensor([[1.0, 0, 0, 0, 0, 0, 0, 0]]))[0, :2]
    tensor([ 2.4749, -0.3536])
    """
    if scale not in ("std", "none"):
        raise ValueError(f'scale is {scale!r}; it must be "std" or "none"')
    if rewards_P_G.dim() != 2:
        raise ValueError(f"rewards_P_G has shape {tuple(rewards_P_G.shape)}; it must be (problems, samples)")
    rewards = rewards_P_G.detach().double()
    judged = ~rewards.isnan()
    count = judged.sum(-1, keepdim=True)
    mean = torch.where(judged, rewards, 0).sum(-1, keepdim=True) / count.clamp(min=1)
    centred = torch.where(judged, rewards - mean, 0)
    highest = torch.where(judged, rewards, -math.inf).amax(-1, keepdim=True)
    lowest = torch.where(judged, rewards, math.inf).amin(-1, keepdim=True)
    advantages = torch.where(highest > lowest, centred, 0)
    if scale == "std":
        std = (centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
        advantages = advantages / (std + eps)
    return advantages.to(rewards_P_G.dtype if rewards_P_G.is_floating_point() else torch.float32)


class Denominators(NamedTuple):
    """What each sum over tokens is divided by; see `count_denominators`."""

    explore: float
    near_perfect: float
    on_policy_divergence: float = 0


def count_denominators(
    loss_id_B_T: Tensor, aggregation: Aggregation = "token_mean", max_new_tokens: int | None = None
) -> Denominators:
    """Denominators of a whole batch, to be given to `partitioned_loss` for each of its micro-batches.

    token_mean: tokens with the id. sequence_mean: rows with such a token (each row's mean counts alike).
    dr_grpo: those rows times `max_new_tokens`, a constant, so long answers weigh more.
    With several processes, add up the denominators of all and multiply the loss by the number of processes
    if the gradients are averaged.
    """
    _check_aggregation(aggregation, max_new_tokens)
    counts = []
    for loss_id in _LOSSES:
        chosen = loss_id_B_T == loss_id
        count = int((chosen if aggregation == "token_mean" else chosen.any(-1)).sum())
        counts.append(count * max_new_tokens if aggregation == "dr_grpo" else count)  # type: ignore[operator]
    return Denominators(*counts)


@dataclass(frozen=True)
class PartitionedLossStats:
    """Detached sums of one call, tensors on the loss's device; `a + b` joins micro-batches of one batch.

    Args:
        loss: the returned loss.
        explore: L_exp, the RKL term and the entropy bonus included.
        near_perfect: L_pef (its first half for "js_definition"), before eta.
        on_policy_divergence: the second half for "js_definition", before eta, else 0.
        explore_tokens, near_perfect_tokens, on_policy_divergence_tokens: tokens with that id.
        clipped: EXPLORE tokens whose PPO-clip branch was the larger loss, hence without gradient.
        dual_clipped: EXPLORE tokens with a negative advantage whose loss the dual clip cut.
        ratio_sum: sum of pi_theta / pi_old over EXPLORE tokens.
        old_kl_sum: sum of the k3 estimate of KL(pi_old || pi_theta) over EXPLORE tokens.
        kl_sum: sum of the k3 estimate of KL(pi_theta || pi_ref) over EXPLORE tokens; NaN if rkl_coef is 0,
            because then no reference is asked for.
    """

    loss: Tensor
    explore: Tensor
    near_perfect: Tensor
    on_policy_divergence: Tensor
    explore_tokens: Tensor
    near_perfect_tokens: Tensor
    on_policy_divergence_tokens: Tensor
    clipped: Tensor
    dual_clipped: Tensor
    ratio_sum: Tensor
    old_kl_sum: Tensor
    kl_sum: Tensor

    def __add__(self, other: PartitionedLossStats) -> PartitionedLossStats:
        names = [f.name for f in fields(self)]
        return PartitionedLossStats(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def _per_explore_token(self, total: Tensor) -> Tensor:
        return total / self.explore_tokens.clamp(min=1)

    @property
    def clip_fraction(self) -> Tensor:
        """Share of EXPLORE tokens that PPO-clip left without gradient; 0 without such tokens."""
        return self._per_explore_token(self.clipped)

    @property
    def dual_clip_fraction(self) -> Tensor:
        """Share of EXPLORE tokens that the dual clip cut."""
        return self._per_explore_token(self.dual_clipped)

    @property
    def ratio_mean(self) -> Tensor:
        """Mean importance ratio pi_theta / pi_old of EXPLORE tokens; 1 when on policy, 0 without tokens."""
        return self._per_explore_token(self.ratio_sum)

    @property
    def old_kl(self) -> Tensor:
        """Mean estimate of KL(pi_old || pi_theta), nats per token."""
        return self._per_explore_token(self.old_kl_sum)

    @property
    def kl(self) -> Tensor:
        """Mean estimate of KL(pi_theta || pi_ref), nats per token; NaN where it was not computed."""
        return self._per_explore_token(self.kl_sum)

    def to_dict(self) -> dict[str, float]:
        """The losses, token counts and means as floats, for a log; `kl` only where it was computed."""
        sums = ("clipped", "dual_clipped", "ratio_sum", "old_kl_sum", "kl_sum")
        names = [f.name for f in fields(self) if f.name not in sums]
        names += ["clip_fraction", "dual_clip_fraction", "ratio_mean", "old_kl", "kl"]
        values = {name: float(getattr(self, name)) for name in names}
        return {name: value for name, value in values.items() if name != "kl" or not math.isnan(value)}


def partitioned_loss(
    logprobs_B_T: Tensor,
    *,
    loss_id_B_T: Tensor,
    old_logprobs_B_T: Tensor | None = None,
    advantages_B_T: Tensor | None = None,
    ref_logprobs_B_T: Tensor | None = None,
    entropy_B_T: Tensor | None = None,
    old_kl_B_T: Tensor | None = None,
    divergence: Callable[[Tensor], Tensor] | Literal["js_definition"],
    eta: float,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = 3.0,
    rkl_coef: float = 0.0,
    rkl_estimator: Literal["k3", "k2"] = "k3",
    entropy_coef: float = 0.0,
    aggregation: Aggregation = "token_mean",
    max_new_tokens: int | None = None,
    denominators: Denominators | tuple[float, ...] | None = None,
) -> tuple[Tensor, PartitionedLossStats]:
    """L = L_exp + eta L_pef over one micro-batch that may hold rows of both sets.

    L_exp is the mean over EXPLORE tokens of -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) with
    r = pi_theta / pi_old; for A < 0 it is at most dual_clip |A|. L_pef is the mean over NEAR_PERFECT tokens
    of divergence(log pi_theta - log pi_ref). A set without tokens adds 0, and the result still has a graph.
    Entries at other positions are never read: they may be inf or NaN.

    Args:
        logprobs_B_T: log pi_theta of the tokens, nats, with gradient. 16-bit inputs are computed in fp32.
        loss_id_B_T: integer id of each token, see the module's head.
        old_logprobs_B_T: log-probs under the policy that sampled; for EXPLORE tokens.
        advantages_B_T: advantages, (B, T) or (B, 1); for EXPLORE tokens.
        ref_logprobs_B_T: log-probs under pi_ref; for NEAR_PERFECT (stored with the answer) and, from an online
            reference, ON_POLICY_DIVERGENCE tokens, and EXPLORE tokens if rkl_coef > 0.
        entropy_B_T: entropy of pi_theta at each token, nats, with gradient; for EXPLORE tokens if entropy_coef > 0.
        old_kl_B_T: weights of |log pi_theta / pi_old|, which KL-Cov adds to the loss of a few EXPLORE tokens.
        divergence: a generator of `dphlib.divergences`, any function of d, or "js_definition".
        eta: weight of L_pef.
        clip_low, clip_high: PPO-clip below and above (DAPO: clip_high 0.28).
        dual_clip: cap on the loss for negative advantages, None for no cap.
        rkl_coef: weight of the RKL baseline's term on EXPLORE tokens.
        rkl_estimator: "k3" as the authors have it, or "k2"; they differ in whose gradient they have.
        entropy_coef: of an entropy bonus, which is subtracted from L_exp.
        aggregation, max_new_tokens: see `count_denominators`; max_new_tokens is for "dr_grpo" only.
        denominators: those of the whole batch; counted from this call's ids when None.

    Returns:
        The scalar loss and its `PartitionedLossStats`.

    Raises:
        ValueError: a tensor that is needed is None, shapes differ, an unknown id, a setting out of range, or a
            denominator of 0 for a set that has tokens.
    """
    _check_settings(divergence=divergence, eta=eta, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    _check_settings(rkl_coef=rkl_coef, rkl_estimator=rkl_estimator, entropy_coef=entropy_coef)
    _check_aggregation(aggregation, max_new_tokens)
    logprobs_B_T = logprobs_B_T.float() if logprobs_B_T.dtype in (torch.bfloat16, torch.float16) else logprobs_B_T
    tokens = Tokens(
        logprobs_B_T, loss_id_B_T, old_logprobs_B_T, advantages_B_T, ref_logprobs_B_T, entropy_B_T, old_kl_B_T
    )
    if denominators is None:
        denominators = count_denominators(loss_id_B_T, aggregation, max_new_tokens)
    divisor = dict(zip(_LOSSES, Denominators(*denominators), strict=True))
    present = _present_ids(loss_id_B_T)
    for loss_id in present:
        if not divisor[loss_id] > 0:
            raise ValueError(
                f"the denominator of loss id {loss_id} is {divisor[loss_id]}, yet there are such tokens;"
                " count denominators over the whole batch"
            )

    mean = partial(_mean, loss_id_B_T, divisor, aggregation)
    zero = logprobs_B_T[:0].sum()  # a zero with a graph, whatever the masked positions hold
    explore, near_perfect, on_policy = zero, zero, zero
    counts = [(loss_id_B_T == loss_id).sum() for loss_id in _LOSSES]
    sums = dict.fromkeys(("clipped", "dual_clipped", "ratio_sum", "old_kl_sum", "kl_sum"), zero.detach())
    if EXPLORE in present:
        loss_B_T, of_ratio = _ppo_clip(tokens, clip_low, clip_high, dual_clip)
        sums |= of_ratio
        if rkl_coef > 0:
            kl_B_T, sums["kl_sum"] = _reverse_kl(tokens, rkl_estimator)
            loss_B_T = loss_B_T + rkl_coef * kl_B_T
        if entropy_coef > 0:
            loss_B_T = loss_B_T - entropy_coef * tokens.of(EXPLORE, "entropy_B_T")
        explore = mean(EXPLORE, loss_B_T)
    if NEAR_PERFECT in present:
        near_perfect = mean(NEAR_PERFECT, _rehearsal(tokens, divergence))
    if ON_POLICY_DIVERGENCE in present:
        on_policy = mean(ON_POLICY_DIVERGENCE, _on_policy_half(tokens, divergence))
    if rkl_coef == 0:
        sums["kl_sum"] = zero.detach() + math.nan

    loss = explore + eta * (near_perfect + on_policy)  # L = L_exp + eta L_pef
    terms = (loss, explore, near_perfect, on_policy)
    return loss, PartitionedLossStats(*(term.detach() for term in terms), *counts, **sums)


@dataclass(frozen=True)
class Tokens:
    """What each token of a micro-batch carries, (B, T), advantages (B, T) or (B, 1); None where no token needs it.

    The arguments of `partitioned_loss` of these names.
    """

    logprobs_B_T: Tensor
    loss_id_B_T: Tensor
    old_logprobs_B_T: Tensor | None = None
    advantages_B_T: Tensor | None = None
    ref_logprobs_B_T: Tensor | None = None
    entropy_B_T: Tensor | None = None
    old_kl_B_T: Tensor | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.logprobs_B_T.shape)
        for field in fields(self):
            tensor = getattr(self, field.name)
            allowed = [shape] if field.name != "advantages_B_T" else [shape, (*shape[:-1], 1)]
            if tensor is not None and tuple(tensor.shape) not in allowed:
                raise ValueError(f"{field.name} has shape {tuple(tensor.shape)}; logprobs_B_T asks for {allowed[-1]}")

    def of(self, loss_id: int, name: str) -> Tensor:
        """A field on the tokens with that id, 0 elsewhere.

        Masked before any exp or difference: the gradient of a masked inf would be NaN even if its loss is not used.
        """
        tensor = getattr(self, name)
        if tensor is None:
            raise ValueError(f"{name} is None, but tokens with loss id {loss_id} need it")
        return torch.where(self.loss_id_B_T == loss_id, tensor.to(self.logprobs_B_T.dtype), 0.0)

    def log_ratio(self, loss_id: int, name: str) -> Tensor:
        """log pi_theta minus another log-prob, on the tokens with that id."""
        return self.of(loss_id, "logprobs_B_T") - self.of(loss_id, name)


def _ppo_clip(
    tokens: Tokens, clip_low: float, clip_high: float, dual_clip: float | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """-min(r A, clip(r) A) of the EXPLORE tokens, for A < 0 at most dual_clip |A|; and sums over them for a log.

    With `old_kl_B_T` its term too.
    """
    log_ratio = tokens.log_ratio(EXPLORE, "old_logprobs_B_T")
    advantages = tokens.of(EXPLORE, "advantages_B_T")
    ratio = _ratio(log_ratio)
    unclipped = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    loss_B_T = torch.maximum(unclipped, bounded)
    sums = {"clipped": (bounded > unclipped).detach().sum()}
    if dual_clip is not None:
        cap = -advantages * dual_clip
        cut = (advantages < 0) & (loss_B_T > cap)
        loss_B_T = torch.where(cut, cap, loss_B_T)
        sums["dual_clipped"] = cut.detach().sum()
    if tokens.old_kl_B_T is not None:
        loss_B_T = loss_B_T + tokens.of(EXPLORE, "old_kl_B_T") * log_ratio.abs()
    # masked positions have ratio 1 and k3 0
    sums["ratio_sum"] = (ratio.detach() - 1).sum() + (tokens.loss_id_B_T == EXPLORE).sum()
    sums["old_kl_sum"] = _k3(log_ratio.detach()).sum()
    return loss_B_T, sums


def _reverse_kl(tokens: Tokens, estimator: str) -> tuple[Tensor, Tensor]:
    """The RKL baseline's term of the EXPLORE tokens, and the sum of k3, an estimate of KL(pi_theta || pi_ref)."""
    x = tokens.of(EXPLORE, "ref_logprobs_B_T") - tokens.of(EXPLORE, "logprobs_B_T")
    k3 = _k3(x)
    return k3 if estimator == "k3" else x.square() / 2, k3.detach().sum()


def _rehearsal(tokens: Tokens, divergence: Callable[[Tensor], Tensor] | str) -> Tensor:
    """f(exp d) of the stored answers' tokens; of JS by definition its first half, KL(pi_ref || M) / 2."""
    d = tokens.log_ratio(NEAR_PERFECT, "ref_logprobs_B_T")
    return divergence(d) if callable(divergence) else log_over_mean(-d) / 2


def _on_policy_half(tokens: Tokens, divergence: Callable[[Tensor], Tensor] | str) -> Tensor:
    """KL(pi_theta || M) / 2 of the policy's own answers: value h / 2, h = log(pi_theta / M), gradient as documented."""
    if divergence != "js_definition":
        raise ValueError(
            'tokens with loss id ON_POLICY_DIVERGENCE (3) belong to divergence="js_definition" only;'
            " give them id IGNORE, or choose that divergence"
        )
    d = tokens.log_ratio(ON_POLICY_DIVERGENCE, "ref_logprobs_B_T").detach()
    policy = tokens.of(ON_POLICY_DIVERGENCE, "logprobs_B_T")
    h = log_over_mean(d)
    weight = h + 0.5 - torch.sigmoid(d)
    return (h + weight * (policy - policy.detach())) / 2


def _mean(
    loss_id_B_T: Tensor, divisor: Mapping[int, float], aggregation: str, loss_id: int, loss_B_T: Tensor
) -> Tensor:
    """The loss of the tokens with that id, added up and divided as the aggregation says."""
    mask_B_T = loss_id_B_T == loss_id
    loss_B_T = torch.where(mask_B_T, loss_B_T, 0.0)
    if aggregation == "sequence_mean":
        loss_B_T = loss_B_T / mask_B_T.sum(-1, keepdim=True).clamp(min=1)
    return loss_B_T.sum() / divisor[loss_id]


def _ratio(log_ratio: Tensor) -> Tensor:
    """exp(log_ratio), linear beyond MAX_LOG_RATIO: finite, and the gradient is not lost as in a clamp."""
    excess = torch.relu(log_ratio - MAX_LOG_RATIO)
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp() * (1 + excess)


def _present_ids(loss_id_B_T: Tensor) -> set[int]:
    """The ids other than IGNORE that occur."""
    if loss_id_B_T.is_floating_point():
        raise ValueError(f"loss_id_B_T has dtype {loss_id_B_T.dtype}; it must be an integer dtype")
    ids = set(loss_id_B_T.unique().tolist())  # type: ignore[no-untyped-call]
    unknown = ids - {IGNORE, EXPLORE, NEAR_PERFECT, ON_POLICY_DIVERGENCE}
    if unknown:
        raise ValueError(
            f"unknown loss ids {sorted(unknown)}; use IGNORE 0, EXPLORE 1, NEAR_PERFECT 2, ON_POLICY_DIVERGENCE 3"
        )
    return ids - {IGNORE}


_SETTINGS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "divergence": ('a generator or "js_definition"', lambda value: callable(value) or value == "js_definition"),
    "eta": (">= 0", lambda value: value >= 0),
    "clip_low": ("in [0, 1]", lambda value: 0 <= value <= 1),
    "clip_high": (">= 0", lambda value: value >= 0),
    "dual_clip": ("> 1, or None", lambda value: value is None or value > 1),
    "rkl_coef": (">= 0", lambda value: value >= 0),
    "rkl_estimator": ('"k3" or "k2"', lambda value: value in ("k3", "k2")),
    "entropy_coef": (">= 0", lambda value: value >= 0),
}


def _check_settings(**given: Any) -> None:
    for name, value in given.items():
        allowed, fits = _SETTINGS[name]
        if not fits(value):
            raise ValueError(f"{name} is {value!r}; it must be {allowed}")


def _check_aggregation(aggregation: str, max_new_tokens: int | None) -> None:
    if aggregation not in get_args(Aggregation):
        raise ValueError(f"aggregation is {aggregation!r}; choose one of {', '.join(get_args(Aggregation))}")
    if (aggregation == "dr_grpo") != (max_new_tokens is not None) or (max_new_tokens or 1) < 1:
        raise ValueError(
            f"max_new_tokens is {max_new_tokens} with aggregation {aggregation!r}; give the generation limit"
            ' (>= 1) with "dr_grpo", which divides by it, and None otherwise'
        )
