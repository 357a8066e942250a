r"""f-divergences between the policy and the reference, through their generators.

Notation. u = pi_theta(token) / pi_ref(token), d = log u = log pi_theta - log pi_ref in nats, D_f = E_{pi_ref}[f(u)]
with f convex and f(1) = 0. On tokens drawn from pi_ref the mean of f(exp d) is an unbiased estimate of D_f, and so is
its gradient, because the sampling does not depend on theta. So the stored answers and their log-probabilities are all
that is needed, and no reference model is:

    f = generator("js")
    loss = f(logprobs - ref_logprobs).mean()

Every generator has f'(1) = 0, hence f >= 0 token by token (adding c (u - 1) changes no divergence; it is a control
variate with mean zero). Value and gradient are finite for every finite d in float64, float32, bfloat16 and float16, and
keep their relative precision near d = 0. Where the true f overflows it is continued beyond d = `BOUND` by
f(b) + f'(b) log(1 + d - b), f' being the derivative with respect to d and b the bound; value and gradient are
continuous there, and the gradient never becomes zero.

Formulas and constants of each generator are in `generators`; how these differ from the authors' code is in
`docs/method.md`. Not here: sampling, masking and averaging over tokens (`losses`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dphlib.generators import GENERATORS, Generator

BOUND = 20.0
"""From this d (nats) on an overflowing generator is continued logarithmically in d."""
BOUND_FLOAT16 = 3.5
"""The same for float16 tensors, so that value and gradient stay below 65504."""

_LOG2 = math.log(2.0)

Elementwise = Callable[[Tensor], Tensor]


class _WithSlope(torch.autograd.Function):
    """value(d) with the gradient slope(d): the derivative that autograd would take of an accurate value
    cancels where the value does not, so it is given in closed form."""

    generate_vmap_rule = True

    @staticmethod
    def forward(d: Tensor, value: Elementwise, slope: Elementwise) -> Tensor:
        return value(d)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        d, _, ctx.slope = inputs
        ctx.save_for_backward(d)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (d,) = ctx.saved_tensors
        return grad * ctx.slope(d), None, None


@dataclass(frozen=True, kw_only=True)
class Divergence(Generator):
    """A generator with its functions. Calling it gives f(exp d), see `generator`.

    Args:
        value, slope: d -> f(exp d) and its derivative with respect to d, the weight of the token's gradient; unbounded.
        dual: t -> f*(t) on the domain of f*.
    """

    value: Elementwise
    slope: Elementwise
    dual: Elementwise

    def __call__(self, d: Tensor) -> Tensor:
        """f(exp d) elementwise, in the dtype of `d`; computed in fp32 for 16-bit inputs."""
        if not d.is_floating_point():
            raise TypeError(f"d has dtype {d.dtype}; it must be a floating dtype: log-probabilities in nats")
        working = d.float() if d.dtype in (torch.bfloat16, torch.float16) else d
        bound = BOUND_FLOAT16 if d.dtype == torch.float16 else BOUND
        largest = torch.finfo(d.dtype).max
        left = -bound if self.overflows_left else -largest

        def split(d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            finite = d.clamp(-largest, largest)
            return finite.clamp(left, bound), (finite - bound).clamp(min=0), (left - finite).clamp(min=0)

        def value(d: Tensor) -> Tensor:
            inside, over, under = split(d)
            return self.value(inside) + self.slope(inside) * (torch.log1p(over) - torch.log1p(under))

        def slope(d: Tensor) -> Tensor:
            inside, over, under = split(d)
            return self.slope(inside) / (1 + over + under)

        return _WithSlope.apply(working, value, slope).to(d.dtype)  # type: ignore[no-untyped-call]

    def conjugate(self, t: Tensor) -> Tensor:
        """The convex conjugate f*(t) elementwise, infinite outside its domain; its gradient is the maximising u.

        Of the true f: the continuation beyond `BOUND` is left out. All have f*(0) = 0 and slope 1 there; f* is infinite
        above `slope_at_infinity` and falls to -f(0) towards minus infinity.

        >>> divergence("forward_kl").conjugate(torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.0000, 0.6931,    inf])
        """
        end = self.slope_at_infinity
        inside = t <= end if r"\le" in self.conjugate_domain else t < end
        return torch.where(inside, self.dual(torch.where(inside, t, 0.0)), math.inf)


def _expm1_minus(x: Tensor) -> Tensor:
    """expm1(x) - x without cancellation: its series for |x| < 1/8, where 9 terms reach float64 precision."""
    small = x.clamp(-0.125, 0.125)
    series = torch.full_like(small, 1 / math.factorial(10))
    for n in range(9, 1, -1):
        series = series * small + 1 / math.factorial(n)
    return torch.where(x.abs() < 0.125, series * small * small, torch.expm1(x) - x)


def log_over_mean(d: Tensor) -> Tensor:
    """log(pi_theta / M) = log(2u / (1 + u)) = log 2 - softplus(-d), M the mean of pi_theta and pi_ref."""
    near = d.clamp(-1, 1)
    return torch.where(d.abs() < 1, -torch.log1p(torch.expm1(-near) / 2), _LOG2 + F.logsigmoid(d))


def _js(d: Tensor) -> Tensor:
    near = d.clamp(-1, 1)
    log_cosh = torch.log1p(torch.sinh(near / 2).square()) / 2  # log cosh(d/2), even in d: no cancellation
    near_zero = (near * torch.expm1(near) / 2 - log_cosh * (near.exp() + 1)) / 2
    return torch.where(d.abs() < 1, near_zero, (d.exp() * log_over_mean(d) + log_over_mean(-d)) / 2)


def _reverse_kl(d: Tensor) -> Tensor:
    near = d.clamp(-0.125, 0.125)
    return torch.where(d.abs() < 0.125, near.exp() * _expm1_minus(-near), d * d.exp() - torch.expm1(d))


def _alpha_forms(alpha: float) -> tuple[Elementwise, Elementwise]:
    beta = 1 - alpha
    if alpha < 1e-30:  # fp32 does not hold it, and the limit is nearer than rounding
        return DIVERGENCES["reverse_kl"].value, DIVERGENCES["reverse_kl"].slope

    def near_a_limit(d: Tensor) -> Tensor:
        # the form below cancels the more, the nearer alpha is to 0 or 1; this is the limit less a small correction
        x = (min(alpha, beta) * d).clamp(-1, 1)
        if alpha < beta:
            close = (_reverse_kl(d) - d.exp() * _expm1_minus(-x) / alpha) / beta
        else:
            close = (_expm1_minus(d) - _expm1_minus(x) / beta) / alpha
        return torch.where(x.abs() < 1, close, (alpha - (beta * d).exp() + beta * d.exp()) / (alpha * beta))

    def value(d: Tensor) -> Tensor:
        near = d.clamp(-1, 1)
        near_zero = _expm1_minus(beta * near) - beta * _expm1_minus(near)
        elsewhere = torch.expm1(beta * d) - beta * torch.expm1(d)
        return torch.where(d.abs() < 1, near_zero, elsewhere) / (-alpha * beta)

    def slope(d: Tensor) -> Tensor:
        return (beta * d).exp() * torch.expm1(alpha * d) / alpha

    return (near_a_limit if min(alpha, beta) < 0.01 else value), slope


def _alpha_dual(alpha: float) -> Elementwise:
    power = (alpha - 1) / alpha
    return lambda t: torch.expm1(power * torch.log1p(-alpha * t)) / (1 - alpha)


def _pearson_dual(t: Tensor) -> Tensor:
    bent = t.clamp(min=-2)  # below, the best u is 0 and f* stays at -f(0)
    return bent + bent.square() / 4


def _jeffreys_dual(t: Tensor) -> Tensor:
    """Through y = log W_0(exp(1 - t)), the root of y + exp y = 1 - t: exp never overflows."""
    with torch.no_grad():
        wanted = 1 - t
        y = torch.where(wanted > 1, wanted.clamp(min=1).log(), wanted)  # beyond the root, so Newton only comes down
        for _ in range(30):
            y = y - (y + torch.expm1(y) + t) / (1 + y.exp())
    y = y - (y + torch.expm1(y) + t) / (1 + y.exp())  # once more, for the gradient with respect to t
    return torch.expm1(-y) - y  # w + 1/w + t - 2 with w = exp y = 1 - t - y: nothing large is left to cancel


# value, slope and dual of each generator; alpha's are those of its limit 1 until `divergence` gives it an alpha
_FUNCTIONS: dict[str, tuple[Elementwise, Elementwise, Elementwise]] = {
    "forward_kl": (_expm1_minus, torch.expm1, lambda t: -torch.log1p(-t)),
    "reverse_kl": (_reverse_kl, lambda d: d * d.exp(), torch.expm1),
    "js": (_js, lambda d: d.exp() * log_over_mean(d) / 2, lambda t: -torch.log1p(-torch.expm1(2 * t)) / 2),
    "alpha": (_expm1_minus, torch.expm1, lambda t: -torch.log1p(-t)),
    "hellinger": (
        lambda d: torch.expm1(d / 2).square(),
        lambda d: (d / 2).exp() * torch.expm1(d / 2),
        lambda t: t / (1 - t),
    ),
    "pearson_chi2": (lambda d: torch.expm1(d).square(), lambda d: 2 * d.exp() * torch.expm1(d), _pearson_dual),
    "neyman_chi2": (
        lambda d: 4 * torch.sinh(d / 2).square(),
        lambda d: 2 * torch.sinh(d),
        lambda t: 2 * t / (1 + (1 - t).sqrt()),
    ),
    "total_variation": (
        lambda d: torch.expm1(d).abs() / 2,
        lambda d: torch.sign(d) * d.exp() / 2,
        lambda t: t.clamp(min=-0.5),
    ),
    "jeffreys": (lambda d: d * torch.expm1(d), lambda d: torch.expm1(d) + d * d.exp(), _jeffreys_dual),
}
DIVERGENCES: dict[str, Divergence] = {
    name: Divergence(**vars(GENERATORS[name]), value=value, slope=slope, dual=dual)
    for name, (value, slope, dual) in _FUNCTIONS.items()
}


def divergence(name: str, **params: float) -> Divergence:
    """The divergence of that name with its facts; callable like `generator`'s result.

    Args:
        name: a key of `DIVERGENCES`.
        params: `alpha` in (0, 1) for "alpha", nothing for the others.

    Raises:
        ValueError: unknown name, a parameter that is missing or not taken, or alpha outside (0, 1).

    >>> divergence("js").second_derivative_at_1
    0.25
    """
    if name not in DIVERGENCES:
        raise ValueError(f"unknown divergence {name!r}; choose one of {', '.join(DIVERGENCES)}")
    wanted = {"alpha"} if name == "alpha" else set()
    if set(params) != wanted:
        raise ValueError(
            f"divergence {name!r} takes {sorted(wanted) or 'no parameters'}, got {sorted(params) or 'none'};"
            ' write for example generator("alpha", alpha=0.5)'
        )
    if name != "alpha":
        return DIVERGENCES[name]
    alpha = float(params["alpha"])
    if not 0 < alpha < 1:
        raise ValueError(f'alpha is {alpha}; it must lie in (0, 1): "forward_kl" is the limit 1, "reverse_kl" is 0')
    value, slope = _alpha_forms(alpha)
    return replace(
        DIVERGENCES["alpha"],
        at_zero=1 / (1 - alpha),
        slope_at_infinity=1 / alpha,
        value=value,
        slope=slope,
        dual=_alpha_dual(alpha),
    )


def generator(name: str, **params: float) -> Elementwise:
    """The function d = log pi_theta - log pi_ref -> f(exp d), elementwise and differentiable.

    `d` has any shape and any floating dtype, in nats; the result has both. Infinities count as the largest finite
    number of the dtype, so value and gradient are finite there too; NaN stays NaN. Padding should still be masked
    *before* the call (`torch.where(mask, d, 0)`, as `losses.partitioned_loss` does): it must cost nothing.

    Args and Raises: see `divergence`.

    >>> generator("forward_kl")(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0.3679, 0.0000, 0.7183])
    """
    return divergence(name, **params)


def exact(name: str, p_ref_V: Tensor, p_theta_V: Tensor, **params: float) -> Tensor:
    """D_f of two categorical distributions: sum over the vocabulary of p_ref f(p_theta / p_ref), in float64.

    Terms with p_theta = 0 are p_ref f(0), terms with p_ref = 0 are p_theta times the limit of f(u)/u, and terms with
    both zero are 0, so the result may be inf. No bound is applied. Differentiable in both.

    Args:
        name, params: see `divergence`.
        p_ref_V, p_theta_V: probabilities along the last dimension; leading dimensions are kept.

    Raises:
        ValueError: a negative or NaN probability, or a sum that is not 1 within 1e-4.

    >>> float(exact("total_variation", torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])))
    0.5
    """
    f = divergence(name, **params)
    p_ref, p_theta = torch.as_tensor(p_ref_V).double(), torch.as_tensor(p_theta_V).double()
    for label, p in (("p_ref_V", p_ref), ("p_theta_V", p_theta)):
        total = p.detach().sum(-1)
        if not bool((p.detach() >= 0).all()) or not bool(((total - 1).abs() < 1e-4).all()):
            raise ValueError(
                f"{label} is not a distribution along its last dimension (sums {total.tolist()});"
                " entries must be >= 0 and sum to 1: apply softmax first"
            )
    both = (p_ref > 0) & (p_theta > 0)
    d = torch.where(both, p_theta, 1.0).log() - torch.where(both, p_ref, 1.0).log()
    inside = torch.where(both, p_ref, 0.0) * _WithSlope.apply(d, f.value, f.slope)  # type: ignore[no-untyped-call]
    dropped = _edge(p_ref, f.at_zero, (p_ref > 0) & (p_theta == 0))
    outside = _edge(p_theta, f.slope_at_infinity, (p_ref == 0) & (p_theta > 0))
    return (inside + dropped + outside).sum(-1)


def _edge(p: Tensor, limit: float, where: Tensor) -> Tensor:
    """p times limit on the mask, 0 elsewhere; an infinite limit must not meet a zero gradient."""
    cost = p * limit if math.isfinite(limit) else torch.full_like(p, limit)
    return torch.where(where, cost, 0.0)
