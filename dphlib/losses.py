r"""The partitioned loss L = L_exp + eta L_pef and group advantages.

Both sets travel in one micro-batch; each token carries the id of the loss it belongs to:

    IGNORE                 prompt, padding, or nothing to learn
    EXPLORE                on-policy answer to a prompt of D_exp: PPO-clip on group advantages, no KL term
    NEAR_PERFECT           stored reference answer to a prompt of D_pef: f(exp d), d = log pi_theta/pi_ref
    ON_POLICY_DIVERGENCE   on-policy answer to a prompt of D_pef: the second half of JS by its definition

This module needs torch, `dphlib.divergences` and `dphlib.logprobs` (whose `logprobs_from_hidden` it hands
on); it knows no trainer, model or tokenizer.

How this departs from the authors' code:

1. Two separate means. They average RL rows and D_pef rows together (2,048 and 256 rows), which makes their
   eta an eta / 8 of the formula; ours is the formula's.
2. The denominators can be given (`count_denominators` over the whole batch), so the loss does not depend on
   how micro-batches were cut; losses and gradients of the micro-batches then simply add up.
3. Beyond exp(20) the importance ratio grows linearly in its logarithm: finite, with a gradient that survives.
4. The RKL baseline is theirs: k3 of x = log pi_ref - log pi_theta on the EXPLORE tokens. Its *value*
   estimates KL(pi_theta || pi_ref). Its *gradient* on on-policy tokens is, in expectation, that of
   KL(pi_ref || pi_theta): E_theta[(1 - pi_ref/pi_theta) grad log pi_theta] = -E_ref[grad log pi_theta].
   `rkl_estimator="k2"`, x^2 / 2, has the gradient of KL(pi_theta || pi_ref). Tests show both.

JS by definition (`divergence="js_definition"`), with M = (pi_ref + pi_theta) / 2 on the sampled token:

    half 1   KL(pi_ref || M) / 2 on NEAR_PERFECT tokens: log(pi_ref / M) / 2, differentiated through M
    half 2   KL(pi_theta || M) / 2 on ON_POLICY_DIVERGENCE tokens: value h / 2 with h = log(pi_theta / M);
             gradient (h + 1/2 - pi_theta / (2 M)) / 2 grad log pi_theta, that is the score function with
             weight h, the pathwise -log M, and a baseline of 1/2 (its expectation is zero, and it makes the
             weight 0 where pi_theta = pi_ref). Unbiased for tokens drawn from the present pi_theta

each with a mean of its own, both multiplied by eta. Token level: the gradient of a token does not credit
later tokens, as in the generator form.

Controls: `negative_log_likelihood` as the divergence is rehearsal by plain -log pi_theta; GRPO is a batch without
NEAR_PERFECT tokens. Not here: choosing ids, dynamic sampling, overlong shaping; they are the trainer's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from dphlib.divergences import generator, log_over_mean
from dphlib.logprobs import logprobs_from_hidden as logprobs_from_hidden

IGNORE = 0
EXPLORE = 1
NEAR_PERFECT = 2
ON_POLICY_DIVERGENCE = 3

Aggregation = Literal["token_mean", "sequence_mean", "dr_grpo"]
MAX_LOG_RATIO = 20.0
"""From this log importance ratio (nats) on, the ratio grows linearly in it: exp(20) (1 + excess)."""

_k3 = generator("forward_kl")


def negative_log_likelihood(log_ratio: Tensor) -> Tensor:
    """-d, d = log pi_theta - log pi_ref: -log pi_theta but for a constant, whose gradient does not vanish at d = 0."""
    return -log_ratio


def group_advantages(rewards_P_G: Tensor, *, scale: Literal["std", "none"] = "std", eps: float = 1e-6) -> Tensor:
    """GRPO's advantages: (reward - mean of its group) / (standard deviation of its group + eps).

    The standard deviation is the sample's (divisor n - 1). A group of equal rewards, and a group of one,
    get exactly zero: rounding of the mean must not become an advantage. NaN marks an answer that could not
    be judged; it is left out of mean and deviation and gets zero.

    Args:
        rewards_P_G: rewards, one row a problem, one column a sample.
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
    for loss_id in (EXPLORE, NEAR_PERFECT, ON_POLICY_DIVERGENCE):
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
        """Mean estimate of KL(pi_old || pi_theta), nats a token."""
        return self._per_explore_token(self.old_kl_sum)

    @property
    def kl(self) -> Tensor:
        """Mean estimate of KL(pi_theta || pi_ref), nats a token; NaN where it was not computed."""
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
        divergence: a generator of `dphlib.divergences`, any function of d, or "js_definition".
        eta: weight of L_pef.
        clip_low, clip_high: PPO-clip below and above (DAPO: clip_high 0.28).
        dual_clip: cap on the loss for negative advantages, None for no cap.
        rkl_coef: weight of the RKL baseline's term on EXPLORE tokens.
        rkl_estimator: "k3" as the authors, or "k2"; see departure 4 at the module's head.
        entropy_coef: of an entropy bonus, which is subtracted from L_exp.
        aggregation, max_new_tokens: see `count_denominators`; max_new_tokens is for "dr_grpo" only.
        denominators: those of the whole batch; counted from this call's ids when None.

    Returns:
        The scalar loss and its `PartitionedLossStats`.

    Raises:
        ValueError: a tensor that is needed is None, shapes differ, an unknown id, a setting out of range, or a
            denominator of 0 for a set that has tokens.
    """
    definition = divergence == "js_definition"
    for name, value, allowed, fits in (
        ("divergence", divergence, 'a generator or "js_definition"', callable(divergence) or definition),
        ("eta", eta, ">= 0", eta >= 0),
        ("clip_low", clip_low, "in [0, 1]", 0 <= clip_low <= 1),
        ("clip_high", clip_high, ">= 0", clip_high >= 0),
        ("dual_clip", dual_clip, "> 1, or None", dual_clip is None or dual_clip > 1),
        ("rkl_coef", rkl_coef, ">= 0", rkl_coef >= 0),
        ("rkl_estimator", rkl_estimator, '"k3" or "k2"', rkl_estimator in ("k3", "k2")),
        ("entropy_coef", entropy_coef, ">= 0", entropy_coef >= 0),
    ):
        if not fits:
            raise ValueError(f"{name} is {value!r}; it must be {allowed}")
    _check_aggregation(aggregation, max_new_tokens)
    shape = tuple(logprobs_B_T.shape)
    for name, tensor, allowed in (  # type: ignore[assignment]
        ("loss_id_B_T", loss_id_B_T, (shape,)),
        ("old_logprobs_B_T", old_logprobs_B_T, (shape,)),
        ("ref_logprobs_B_T", ref_logprobs_B_T, (shape,)),
        ("entropy_B_T", entropy_B_T, (shape,)),
        ("advantages_B_T", advantages_B_T, (shape, (*shape[:-1], 1))),
    ):
        if tensor is not None and tuple(tensor.shape) not in allowed:  # type: ignore[operator]
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; logprobs_B_T asks for {allowed[-1]}")

    logprobs = logprobs_B_T.float() if logprobs_B_T.dtype in (torch.bfloat16, torch.float16) else logprobs_B_T
    if denominators is None:
        denominators = count_denominators(loss_id_B_T, aggregation, max_new_tokens)
    divisor = dict(zip((EXPLORE, NEAR_PERFECT, ON_POLICY_DIVERGENCE), Denominators(*denominators), strict=True))
    present = _present_ids(loss_id_B_T)
    for loss_id in present:
        if not divisor[loss_id] > 0:
            raise ValueError(
                f"the denominator of loss id {loss_id} is {divisor[loss_id]}, yet there are such tokens;"
                " count denominators over the whole batch"
            )
    zero = logprobs[:0].sum()  # a zero with a graph, whatever stands in the masked positions
    explore, near_perfect, on_policy = zero, zero, zero
    nothing = zero.detach()
    tokens = {loss_id: (loss_id_B_T == loss_id).sum() for loss_id in divisor}
    clipped, dual_clipped, ratio_sum, old_kl_sum = nothing, nothing, nothing, nothing
    kl_sum = nothing if rkl_coef > 0 else nothing + math.nan

    def mean(loss_B_T: Tensor, loss_id: int) -> Tensor:
        mask = loss_id_B_T == loss_id
        loss_B_T = torch.where(mask, loss_B_T, 0.0)
        if aggregation == "sequence_mean":
            loss_B_T = loss_B_T / mask.sum(-1, keepdim=True).clamp(min=1)
        return loss_B_T.sum() / divisor[loss_id]

    def masked(tensor: Tensor | None, name: str, loss_id: int) -> Tensor:
        # before any exp or difference: the gradient of a masked inf would be NaN even if its loss is not used
        if tensor is None:
            raise ValueError(f"{name} is None, but tokens with loss id {loss_id} need it")
        return torch.where(loss_id_B_T == loss_id, tensor.to(logprobs.dtype), 0.0)

    if EXPLORE in present:
        policy = masked(logprobs, "logprobs_B_T", EXPLORE)
        old = masked(old_logprobs_B_T, "old_logprobs_B_T", EXPLORE)
        advantages = masked(advantages_B_T, "advantages_B_T", EXPLORE)
        ratio = _ratio(policy - old)
        unclipped = -advantages * ratio
        bounded = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
        loss_B_T = torch.maximum(unclipped, bounded)
        clipped = (bounded > unclipped).detach().sum()
        if dual_clip is not None:
            cap = -advantages * dual_clip
            cut = (advantages < 0) & (loss_B_T > cap)
            loss_B_T = torch.where(cut, cap, loss_B_T)
            dual_clipped = cut.detach().sum()
        if rkl_coef > 0:
            x = masked(ref_logprobs_B_T, "ref_logprobs_B_T", EXPLORE) - policy
            k3 = _k3(x)
            loss_B_T = loss_B_T + rkl_coef * (k3 if rkl_estimator == "k3" else x.square() / 2)
            kl_sum = k3.detach().sum()
        if entropy_coef > 0:
            loss_B_T = loss_B_T - entropy_coef * masked(entropy_B_T, "entropy_B_T", EXPLORE)
        explore = mean(loss_B_T, EXPLORE)
        # masked positions have ratio 1 and k3 0
        ratio_sum = (ratio.detach() - 1).sum() + tokens[EXPLORE]
        old_kl_sum = _k3((policy - old).detach()).sum()

    if NEAR_PERFECT in present:
        policy = masked(logprobs, "logprobs_B_T", NEAR_PERFECT)
        d = policy - masked(ref_logprobs_B_T, "ref_logprobs_B_T", NEAR_PERFECT)
        f = log_over_mean(-d) / 2 if definition else divergence(d)  # type: ignore[operator]
        near_perfect = mean(f, NEAR_PERFECT)

    if ON_POLICY_DIVERGENCE in present:
        if not definition:
            raise ValueError(
                'tokens with loss id ON_POLICY_DIVERGENCE (3) belong to divergence="js_definition" only;'
                " give them id IGNORE, or choose that divergence"
            )
        policy = masked(logprobs, "logprobs_B_T", ON_POLICY_DIVERGENCE)
        reference = masked(ref_logprobs_B_T, "ref_logprobs_B_T", ON_POLICY_DIVERGENCE)
        d = (policy - reference).detach()
        h = log_over_mean(d)
        weight = h + 0.5 - torch.sigmoid(d)
        on_policy = mean((h + weight * (policy - policy.detach())) / 2, ON_POLICY_DIVERGENCE)

    loss = explore + eta * (near_perfect + on_policy)  # L = L_exp + eta L_pef
    return loss, PartitionedLossStats(
        loss=loss.detach(),
        explore=explore.detach(),
        near_perfect=near_perfect.detach(),
        on_policy_divergence=on_policy.detach(),
        explore_tokens=tokens[EXPLORE],
        near_perfect_tokens=tokens[NEAR_PERFECT],
        on_policy_divergence_tokens=tokens[ON_POLICY_DIVERGENCE],
        clipped=clipped,
        dual_clipped=dual_clipped,
        ratio_sum=ratio_sum,
        old_kl_sum=old_kl_sum,
        kl_sum=kl_sum,
    )


def _ratio(log_ratio: Tensor) -> Tensor:
    """exp(log_ratio), linear beyond MAX_LOG_RATIO: finite, and the gradient is not lost as in a clamp."""
    excess = torch.relu(log_ratio - MAX_LOG_RATIO)
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp() * (1 + excess)


def _present_ids(loss_id_B_T: Tensor) -> set[int]:
    """The ids other than IGNORE that occur."""
    if loss_id_B_T.is_floating_point():
        raise ValueError(f"loss_id_B_T has dtype {loss_id_B_T.dtype}; it must be an integer dtype")
    unknown = (ids := set(loss_id_B_T.unique().tolist())) - {IGNORE, EXPLORE, NEAR_PERFECT, ON_POLICY_DIVERGENCE}
    if unknown:
        raise ValueError(
            f"unknown loss ids {sorted(unknown)}; use IGNORE 0, EXPLORE 1, NEAR_PERFECT 2, ON_POLICY_DIVERGENCE 3"
        )
    return ids - {IGNORE}


def _check_aggregation(aggregation: str, max_new_tokens: int | None) -> None:
    if aggregation not in get_args(Aggregation):
        raise ValueError(f"aggregation is {aggregation!r}; choose one of {', '.join(get_args(Aggregation))}")
    if (aggregation == "dr_grpo") != (max_new_tokens is not None) or (max_new_tokens or 1) < 1:
        raise ValueError(
            f"max_new_tokens is {max_new_tokens} with aggregation {aggregation!r}; give the generation limit"
            ' (>= 1) with "dr_grpo", which divides by it, and None otherwise'
        )
