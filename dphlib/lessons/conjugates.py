r"""Convex conjugates of the generators: f*(t) = sup over u >= 0 of u t - f(u).

What they are good for: D_f has a variational form that needs samples of both distributions and no density,

    D_f = sup over functions t of E_{pi_theta}[t] - E_{pi_ref}[f*(t)],

reached at t = f'(u), u = pi_theta / pi_ref (Nguyen et al. 2010; f-GAN). DPH-RL does not train by it: both densities are
known here. `variational_bound` shows it on categorical distributions.

Of every generator in `dphlib.divergences`, for the one with f'(1) = 0 that is used there; adding c (u - 1) to f turns
f*(t) into f*(t - c) + c. The facts that all share: f*(0) = 0, the slope of f* is the maximising u (1 at t = 0), f* is
infinite above the divergence's `slope_at_infinity` and falls to -f(0) towards minus infinity. The continuation of a
generator beyond BOUND is left out: these are conjugates of the true f.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dphlib.divergences import Divergence, divergence


@dataclass(frozen=True)
class Conjugate:
    """f* of a divergence; calling it with t gives f*(t).

    Args:
        divergence: whose generator it belongs to.
        equation: f*(t) in LaTeX, on its domain.
        domain: where f* is finite, in LaTeX.
        value: t -> f*(t) on the domain.
    """

    divergence: Divergence
    equation: str
    domain: str
    value: Callable[[Tensor], Tensor]

    def __call__(self, t: Tensor) -> Tensor:
        """f*(t) elementwise, infinite outside the domain; differentiable, the gradient is the maximising u."""
        end = self.divergence.slope_at_infinity
        inside = t <= end if r"\le" in self.domain else t < end
        return torch.where(inside, self.value(torch.where(inside, t, 0.0)), math.inf)


def _pearson(t: Tensor) -> Tensor:
    bent = t.clamp(min=-2)  # below, the best u is 0 and f* stays at -f(0)
    return bent + bent.square() / 4


def _jeffreys(t: Tensor) -> Tensor:
    """Through y = log W_0(exp(1 - t)), the root of y + exp y = 1 - t: exp never overflows."""
    with torch.no_grad():
        wanted = 1 - t
        y = torch.where(wanted > 1, wanted.clamp(min=1).log(), wanted)  # beyond the root, so Newton only comes down
        for _ in range(30):
            y = y - (y + torch.expm1(y) + t) / (1 + y.exp())
    y = y - (y + torch.expm1(y) + t) / (1 + y.exp())  # once more, for the gradient with respect to t
    return torch.expm1(-y) - y  # w + 1/w + t - 2 with w = exp y = 1 - t - y: nothing large is left to cancel


def _alpha(alpha: float) -> Callable[[Tensor], Tensor]:
    power = (alpha - 1) / alpha
    return lambda t: torch.expm1(power * torch.log1p(-alpha * t)) / (1 - alpha)


_EVERY = r"-\infty < t < \infty"
_FORMS: dict[str, tuple[str, str, Callable[[Tensor], Tensor]]] = {
    "forward_kl": (r"-\log(1 - t)", r"t < 1", lambda t: -torch.log1p(-t)),
    "reverse_kl": (r"e^t - 1", _EVERY, torch.expm1),
    "js": (
        r"-\frac{1}{2} \log(2 - e^{2t})",
        r"t < \frac{1}{2} \log 2",
        lambda t: -torch.log1p(-torch.expm1(2 * t)) / 2,
    ),
    "hellinger": (r"\frac{t}{1 - t}", r"t < 1", lambda t: t / (1 - t)),
    "pearson_chi2": (r"t + \frac{t^2}{4}\ (t \ge -2),\ \text{else}\ -1", _EVERY, _pearson),
    "neyman_chi2": (r"2 - 2 \sqrt{1 - t}", r"t \le 1", lambda t: 2 * t / (1 + (1 - t).sqrt())),
    "total_variation": (r"\max(t, -\frac{1}{2})", r"t \le \frac{1}{2}", lambda t: t.clamp(min=-0.5)),
    "jeffreys": (r"w + \frac{1}{w} + t - 2,\ w = W_0(e^{1 - t})", _EVERY, _jeffreys),
}


def conjugate(name: str, **params: float) -> Conjugate:
    """The convex conjugate of a divergence's generator.

    Args and Raises: see `divergences.divergence`.

    >>> conjugate("forward_kl")(torch.tensor([0.0, 0.5, 1.0]))
    tensor([0.0000, 0.6931,    inf])
    """
    f = divergence(name, **params)
    if name != "alpha":
        return Conjugate(f, *_FORMS[name])
    equation = r"\frac{(1 - \alpha t)^{(\alpha - 1)/\alpha} - 1}{1 - \alpha}"
    return Conjugate(f, equation, r"t < \frac{1}{\alpha}", _alpha(params["alpha"]))


def variational_bound(name: str, t_V: Tensor, p_ref_V: Tensor, p_theta_V: Tensor, **params: float) -> Tensor:
    """E_{pi_theta}[t] - E_{pi_ref}[f*(t)], never above D_f; D_f itself at t = f'(pi_theta / pi_ref).

    Args:
        name, params: see `divergences.divergence`.
        t_V: any real number a category; minus infinity comes out where f* is infinite.
        p_ref_V, p_theta_V: probabilities along the last dimension.

    >>> half = torch.tensor([0.5, 0.5])
    >>> float(variational_bound("forward_kl", torch.zeros(2), half, half))
    0.0
    """
    cost_V = torch.where(p_ref_V > 0, p_ref_V * conjugate(name, **params)(t_V), 0.0)
    return (p_theta_V * t_V - cost_V).sum(-1)
