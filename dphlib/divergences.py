r"""f-divergences between the policy and the reference, through their generators.

Notation. u = pi_theta(token) / pi_ref(token), d = log u = log pi_theta - log pi_ref in nats, D_f = E_{pi_ref}[f(u)]
with f convex and f(1) = 0. On tokens drawn from pi_ref the mean of f(exp d) is an unbiased estimate of D_f, and so is
its gradient, because the sampling does not depend on theta. So the stored answers and their log-probabilities are all
that is needed; no reference model is.

This module needs torch and nothing else of `dphlib`:

    f = generator("js")
    loss = f(logprobs - ref_logprobs).mean()

Every generator here is the one with f'(1) = 0, hence f >= 0 token by token (adding c (u - 1) changes no divergence; it
is a control variate with mean zero). Value and gradient are finite for every finite d in float64, float32, bfloat16 and
float16, and keep their relative precision near d = 0.

Where the true f overflows it is continued beyond d = BOUND by f(b) + f'(b) log(1 + d - b), f' being the derivative with
respect to d and b the bound. Value and gradient are continuous there, and the gradient never becomes zero. `BOUND` is
20, for float16 3.5. Below d = -BOUND only Neyman's chi-square overflows.

How this departs from the authors' code:

1. Their `js_low_var` leaves out the factor 1/2 and is 2 x JS. Ours is JS, so an eta of theirs is 2 eta here.
2. Their forward KL ("k3") clamps the value to [-10, 10], which makes the gradient exactly zero at d <= -11, the
   collapsed tokens that rehearsal has to bring back, and at d >= 2.6. Ours has no clamp.
3. Their JS and alpha forms give NaN in fp32 for d <= -104 or d >= 89. Ours are finite.
4. Their three forms lose their sign to cancellation near u = 1 (d = 3e-4 in fp32). Ours use a series, `expm1`,
   `log1p` and softplus where each is accurate.
5. `hellinger`, `pearson_chi2`, `neyman_chi2`, `total_variation`, `jeffreys`, and `reverse_kl` as a generator on stored
   answers, are here for comparison. The RKL baseline is another thing: k3 on on-policy tokens, in `dphlib.losses`.

f''(1) differs between divergences, so one eta is not one strength: to compare at equal strength near pi_theta = pi_ref,
divide eta by `Divergence.second_derivative_at_1`.

Not here: convex conjugates (`lessons.conjugates`); sampling, masking and averaging over tokens (`losses`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BOUND = 20.0
"""From this d (nats) on an overflowing generator is continued logarithmically in d."""
BOUND_FLOAT16 = 3.5
"""The same for float16 tensors, so that value and gradient stay below 65504."""

_LOG2 = math.log(2.0)


class _Elementwise(torch.autograd.Function):
    """value(d) with the gradient slope(d): the derivative that autograd would take of an accurate value
    cancels where the value does not, so it is given in closed form."""

    generate_vmap_rule = True

    @staticmethod
    def forward(d: Tensor, value: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> Tensor:
        return value(d)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        d, _, ctx.slope = inputs
        ctx.save_for_backward(d)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (d,) = ctx.saved_tensors
        return grad * ctx.slope(d), None, None


@dataclass(frozen=True)
class Divergence:
    """A generator and the facts about it. Calling it gives f(exp d), see `generator`.

    Args:
        name: key in `DIVERGENCES`.
        equation, measures: f(u) in LaTeX, and the divergence that E_{pi_ref}[f(u)] is, arguments in order.
        direction: which way it pulls the policy.
        family: its place in the alpha family f_a(u) = (u^(1-a) - (1-a) u - a) / (a (a-1)), a any real number, and in
            Oesterreicher and Vajda's h_b(u) = ((1 + u^b)^(1/b) - 2^(1/b - 1) (1 + u)) / (1 - 1/b), b > 0.
        second_derivative_at_1: f''(1): D_f is about f''(1)/2 E_{pi_ref}[d^2] near pi_ref; None where f has a kink.
        limits: what value and gradient do at both ends.
        value, slope: d -> f(exp d) and its derivative with respect to d, the weight of the token's gradient; unbounded.
        at_zero: f(0), the cost of a token that pi_theta has dropped (may be inf; NaN where alpha decides it).
        slope_at_infinity: the limit of f(u)/u, the cost per unit of pi_theta outside pi_ref's support, likewise.
        derivative_at_1: f'(1), the derivative with respect to u; the subgradient used where f has a kink.
        overflows_left: f also overflows for d towards minus infinity.
    """

    name: str
    equation: str
    measures: str
    direction: str
    family: str
    second_derivative_at_1: float | None
    limits: str
    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    at_zero: float = math.nan
    slope_at_infinity: float = math.nan
    derivative_at_1: float = 0.0
    overflows_left: bool = False

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

        return _Elementwise.apply(working, value, slope).to(d.dtype)


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


def _alpha_forms(alpha: float) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
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


_COVERING = "mass-covering: a token that pi_ref gives and pi_theta drops costs most"
_SEEKING = "mode-seeking: mass of pi_theta where pi_ref has little costs most"
_BOTH = "symmetric"

DIVERGENCES: dict[str, Divergence] = {
    divergence.name: divergence
    for divergence in (
        Divergence(
            "forward_kl",
            r"u - 1 - \log u",
            "KL(pi_ref || pi_theta)",
            _COVERING,
            family="limit a -> 1 of f_a",
            second_derivative_at_1=1.0,
            at_zero=math.inf,
            slope_at_infinity=1.0,
            limits="u -> 0: grows as -d, gradient -1; u -> inf: grows as u, continued beyond BOUND",
            value=_expm1_minus,
            slope=torch.expm1,
        ),
        Divergence(
            "reverse_kl",
            r"u \log u - u + 1",
            "KL(pi_theta || pi_ref)",
            _SEEKING,
            family="limit a -> 0 of f_a",
            second_derivative_at_1=1.0,
            at_zero=1.0,
            slope_at_infinity=math.inf,
            limits="u -> 0: value 1, gradient to 0; u -> inf: grows as u log u, continued beyond BOUND",
            value=_reverse_kl,
            slope=lambda d: d * d.exp(),
        ),
        Divergence(
            "js",
            r"\frac{1}{2}\left(u \log u - (u + 1) \log\frac{u + 1}{2}\right)",
            "JS(pi_ref, pi_theta) = KL(pi_ref || M)/2 + KL(pi_theta || M)/2, M = (pi_ref + pi_theta)/2",
            _BOTH,
            family="half the limit b -> 1 of h_b; no member or limit of f_a",
            second_derivative_at_1=0.25,
            at_zero=_LOG2 / 2,
            slope_at_infinity=_LOG2 / 2,
            limits="u -> 0: value log(2)/2, gradient u log(2u/(u+1))/2 to 0, a collapsed token is hardly pulled back;"
            " u -> inf: grows as u log(2)/2, continued beyond BOUND",
            value=_js,
            slope=lambda d: d.exp() * log_over_mean(d) / 2,
        ),
        Divergence(
            "alpha",
            r"\frac{u^{1-\alpha} - (1-\alpha) u - \alpha}{\alpha (\alpha - 1)}",
            "alpha-divergence; alpha -> 1 is KL(pi_ref || pi_theta), alpha -> 0 is KL(pi_theta || pi_ref)",
            "between mode-seeking (alpha -> 0) and mass-covering (alpha -> 1)",
            family="f_a itself, a = alpha in (0, 1)",
            second_derivative_at_1=1.0,
            limits="u -> 0: value 1/(1-alpha), gradient to 0 as -u^(1-alpha)/alpha;"
            " u -> inf: grows as u/alpha, continued beyond BOUND",
            value=_expm1_minus,
            slope=torch.expm1,
        ),
        Divergence(
            "hellinger",
            r"(\sqrt{u} - 1)^2",
            "squared Hellinger distance, sum (sqrt pi_theta - sqrt pi_ref)^2, without a factor 1/2",
            _BOTH,
            family="half of f_a at a = 1/2; h_b at b = 1/2",
            second_derivative_at_1=0.5,
            at_zero=1.0,
            slope_at_infinity=1.0,
            limits="u -> 0: value 1, gradient to 0 as -sqrt(u); u -> inf: grows as u, continued beyond BOUND",
            value=lambda d: torch.expm1(d / 2).square(),
            slope=lambda d: (d / 2).exp() * torch.expm1(d / 2),
        ),
        Divergence(
            "pearson_chi2",
            r"(u - 1)^2",
            "chi2(pi_theta || pi_ref) = sum (pi_theta - pi_ref)^2 / pi_ref",
            _SEEKING,
            family="twice f_a at a = -1",
            second_derivative_at_1=2.0,
            at_zero=1.0,
            slope_at_infinity=math.inf,
            limits="u -> 0: value 1, gradient to 0 as -2u; u -> inf: grows as u^2, continued beyond BOUND",
            value=lambda d: torch.expm1(d).square(),
            slope=lambda d: 2 * d.exp() * torch.expm1(d),
        ),
        Divergence(
            "neyman_chi2",
            r"\frac{(u - 1)^2}{u}",
            "chi2(pi_ref || pi_theta) = sum (pi_ref - pi_theta)^2 / pi_theta",
            _COVERING,
            family="twice f_a at a = 2",
            second_derivative_at_1=2.0,
            at_zero=math.inf,
            slope_at_infinity=1.0,
            limits="u -> 0: grows as 1/u; u -> inf: grows as u; continued beyond BOUND and -BOUND",
            value=lambda d: 4 * torch.sinh(d / 2).square(),
            slope=lambda d: 2 * torch.sinh(d),
            overflows_left=True,
        ),
        Divergence(
            "total_variation",
            r"\frac{1}{2} |u - 1|",
            "TV(pi_ref, pi_theta) = sum |pi_theta - pi_ref| / 2",
            _BOTH,
            family="limit b -> infinity of h_b; no member or limit of f_a",
            second_derivative_at_1=None,
            at_zero=0.5,
            slope_at_infinity=0.5,
            limits="u -> 0: value 1/2, gradient to 0 as -u/2; u = 1: kink, gradient 0 is used;"
            " u -> inf: grows as u/2, continued beyond BOUND",
            value=lambda d: torch.expm1(d).abs() / 2,
            slope=lambda d: torch.sign(d) * d.exp() / 2,
        ),
        Divergence(
            "jeffreys",
            r"(u - 1) \log u",
            "KL(pi_ref || pi_theta) + KL(pi_theta || pi_ref)",
            _BOTH,
            family="sum of f_a's limits a -> 0 and a -> 1",
            second_derivative_at_1=2.0,
            at_zero=math.inf,
            slope_at_infinity=math.inf,
            limits="u -> 0: grows as -d, gradient -1; u -> inf: grows as u log u, continued beyond BOUND",
            value=lambda d: d * torch.expm1(d),
            slope=lambda d: torch.expm1(d) + d * d.exp(),
        ),
    )
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
    edges = {"at_zero": 1 / (1 - alpha), "slope_at_infinity": 1 / alpha}
    return replace(DIVERGENCES["alpha"], value=value, slope=slope, **edges)  # type: ignore[arg-type]


def generator(name: str, **params: float) -> Callable[[Tensor], Tensor]:
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
    inside = torch.where(both, p_ref, 0.0) * _Elementwise.apply(d, f.value, f.slope)
    dropped = _edge(p_ref, f.at_zero, (p_ref > 0) & (p_theta == 0))
    outside = _edge(p_theta, f.slope_at_infinity, (p_ref == 0) & (p_theta > 0))
    return (inside + dropped + outside).sum(-1)


def _edge(p: Tensor, limit: float, where: Tensor) -> Tensor:
    """p times limit on the mask, 0 elsewhere; an infinite limit must not meet a zero gradient."""
    cost = p * limit if math.isfinite(limit) else torch.full_like(p, limit)
    return torch.where(where, cost, 0.0)
