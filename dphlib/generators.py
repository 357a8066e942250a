r"""The generators of the f-divergences as facts: names, formulas and constants, without torch.

f is convex with f(1) = 0, and here always the one with f'(1) = 0. `divergences` holds the functions, one for each entry
here, and says what they are of; settings, tables and figures read the facts alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_LOG2 = math.log(2.0)


@dataclass(frozen=True, kw_only=True)
class Generator:
    """The facts about one generator; formulas are LaTeX, u = pi_theta / pi_ref.

    Args:
        name: key in `GENERATORS`.
        label: what tables and figures call the divergence.
        equation: f(u).
        measures: the divergence that E_{pi_ref}[f(u)] is, arguments in order.
        direction: which way it pulls the policy.
        family: its place in the alpha family f_a(u) = (u^(1-a) - (1-a) u - a) / (a (a-1)), a any real number, and in
            Oesterreicher and Vajda's h_b(u) = ((1 + u^b)^(1/b) - 2^(1/b - 1) (1 + u)) / (1 - 1/b), b > 0.
        second_derivative_at_1: f''(1): D_f is about f''(1)/2 E_{pi_ref}[d^2] near pi_ref; None where f has a kink.
        at_zero: f(0), the cost of a token that pi_theta has dropped (may be inf; NaN where alpha decides it).
        slope_at_infinity: the limit of f(u)/u, the cost per unit of pi_theta outside pi_ref's support, likewise.
        conjugate_equation: f*(t) = sup over u >= 0 of u t - f(u), the convex conjugate, on its domain.
        conjugate_domain: where f* is finite.
        overflows_left: f(exp d) overflows for d towards minus infinity too, not only for large d.
    """

    name: str
    label: str
    equation: str
    measures: str
    direction: str
    family: str
    second_derivative_at_1: float | None
    at_zero: float
    slope_at_infinity: float
    conjugate_equation: str
    conjugate_domain: str
    overflows_left: bool = False


_COVERING = "mass-covering: a token that pi_ref gives and pi_theta drops costs most"
_SEEKING = "mode-seeking: mass of pi_theta where pi_ref has little costs most"
_BOTH = "symmetric"
_EVERY_T = r"-\infty < t < \infty"

GENERATORS: dict[str, Generator] = {
    generator.name: generator
    for generator in (
        Generator(
            name="forward_kl",
            label="forward KL",
            equation=r"u - 1 - \log u",
            measures="KL(pi_ref || pi_theta)",
            direction=_COVERING,
            family="limit a -> 1 of f_a",
            second_derivative_at_1=1.0,
            at_zero=math.inf,
            slope_at_infinity=1.0,
            conjugate_equation=r"-\log(1 - t)",
            conjugate_domain="t < 1",
        ),
        Generator(
            name="reverse_kl",
            label="reverse KL",
            equation=r"u \log u - u + 1",
            measures="KL(pi_theta || pi_ref)",
            direction=_SEEKING,
            family="limit a -> 0 of f_a",
            second_derivative_at_1=1.0,
            at_zero=1.0,
            slope_at_infinity=math.inf,
            conjugate_equation="e^t - 1",
            conjugate_domain=_EVERY_T,
        ),
        Generator(
            name="js",
            label="JS",
            equation=r"\frac{1}{2}\left(u \log u - (u + 1) \log\frac{u + 1}{2}\right)",
            measures="JS(pi_ref, pi_theta) = KL(pi_ref || M)/2 + KL(pi_theta || M)/2, M = (pi_ref + pi_theta)/2",
            direction=_BOTH,
            family="half the limit b -> 1 of h_b; no member or limit of f_a",
            second_derivative_at_1=0.25,
            at_zero=_LOG2 / 2,
            slope_at_infinity=_LOG2 / 2,
            conjugate_equation=r"-\frac{1}{2} \log(2 - e^{2t})",
            conjugate_domain=r"t < \frac{1}{2} \log 2",
        ),
        Generator(
            name="alpha",
            label="alpha",
            equation=r"\frac{u^{1-\alpha} - (1-\alpha) u - \alpha}{\alpha (\alpha - 1)}",
            measures="alpha-divergence; alpha -> 1 is KL(pi_ref || pi_theta), alpha -> 0 is KL(pi_theta || pi_ref)",
            direction="between mode-seeking (alpha -> 0) and mass-covering (alpha -> 1)",
            family="f_a itself, a = alpha in (0, 1)",
            second_derivative_at_1=1.0,
            at_zero=math.nan,
            slope_at_infinity=math.nan,
            conjugate_equation=r"\frac{(1 - \alpha t)^{(\alpha - 1)/\alpha} - 1}{1 - \alpha}",
            conjugate_domain=r"t < \frac{1}{\alpha}",
        ),
        Generator(
            name="hellinger",
            label="Hellinger",
            equation=r"(\sqrt{u} - 1)^2",
            measures="squared Hellinger distance, sum (sqrt pi_theta - sqrt pi_ref)^2, without a factor 1/2",
            direction=_BOTH,
            family="half of f_a at a = 1/2; h_b at b = 1/2",
            second_derivative_at_1=0.5,
            at_zero=1.0,
            slope_at_infinity=1.0,
            conjugate_equation=r"\frac{t}{1 - t}",
            conjugate_domain="t < 1",
        ),
        Generator(
            name="pearson_chi2",
            label="Pearson chi2",
            equation=r"(u - 1)^2",
            measures="chi2(pi_theta || pi_ref) = sum (pi_theta - pi_ref)^2 / pi_ref",
            direction=_SEEKING,
            family="twice f_a at a = -1",
            second_derivative_at_1=2.0,
            at_zero=1.0,
            slope_at_infinity=math.inf,
            conjugate_equation=r"t + \frac{t^2}{4}\ (t \ge -2),\ \text{else}\ -1",
            conjugate_domain=_EVERY_T,
        ),
        Generator(
            name="neyman_chi2",
            label="Neyman chi2",
            equation=r"\frac{(u - 1)^2}{u}",
            measures="chi2(pi_ref || pi_theta) = sum (pi_ref - pi_theta)^2 / pi_theta",
            direction=_COVERING,
            family="twice f_a at a = 2",
            second_derivative_at_1=2.0,
            at_zero=math.inf,
            slope_at_infinity=1.0,
            conjugate_equation=r"2 - 2 \sqrt{1 - t}",
            conjugate_domain=r"t \le 1",
            overflows_left=True,
        ),
        Generator(
            name="total_variation",
            label="total variation",
            equation=r"\frac{1}{2} |u - 1|",
            measures="TV(pi_ref, pi_theta) = sum |pi_theta - pi_ref| / 2",
            direction=_BOTH,
            family="limit b -> infinity of h_b; no member or limit of f_a",
            second_derivative_at_1=None,
            at_zero=0.5,
            slope_at_infinity=0.5,
            conjugate_equation=r"\max(t, -\frac{1}{2})",
            conjugate_domain=r"t \le \frac{1}{2}",
        ),
        Generator(
            name="jeffreys",
            label="Jeffreys",
            equation=r"(u - 1) \log u",
            measures="KL(pi_ref || pi_theta) + KL(pi_theta || pi_ref)",
            direction=_BOTH,
            family="sum of f_a's limits a -> 0 and a -> 1",
            second_derivative_at_1=2.0,
            at_zero=math.inf,
            slope_at_infinity=math.inf,
            conjugate_equation=r"w + \frac{1}{w} + t - 2,\ w = W_0(e^{1 - t})",
            conjugate_domain=_EVERY_T,
        ),
    )
}


def parse(name: str) -> tuple[str, dict[str, float]]:
    """A divergence written in one word: its name and parameters, as `divergences.divergence` takes them.

    >>> parse("alpha_0.5"), parse("js")
    (('alpha', {'alpha': 0.5}), ('js', {}))
    """
    kind, _, alpha = name.partition("_")
    return ("alpha", {"alpha": float(alpha)}) if kind == "alpha" and alpha else (name, {})


def label(name: str) -> str:
    """What figures call a divergence that is written in one word.

    >>> label("alpha_0.5"), label("js")
    ('alpha 0.5', 'JS')
    """
    kind, params = parse(name)
    return " ".join([GENERATORS[kind].label, *(f"{value:g}" for value in params.values())])
