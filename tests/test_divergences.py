"""Generators against a 60-digit reference, their bounds, and the divergences that they estimate."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal, getcontext, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import SHAPE
from transformers import LlamaConfig, LlamaForCausalLM

from dphlib.divergences import BOUND, DIVERGENCES, divergence, exact, generator
from dphlib.generators import GENERATORS
from dphlib.settings.methods import MethodConfig

getcontext().prec = 60
torch.set_num_threads(1)

ALPHAS = (0.05, 0.2, 0.5, 0.8, 0.95)
EDGE_ALPHAS = (1e-40, 1e-9, 1e-3, 1 - 1e-3, 1 - 1e-9)
CASES = [(name, {}) for name in DIVERGENCES if name != "alpha"] + [("alpha", {"alpha": a}) for a in ALPHAS]
IDS = [name + "".join(f"_{v}" for v in params.values()) for name, params in CASES]
EVERY = pytest.mark.parametrize(("name", "params"), CASES, ids=IDS)
EDGES = [("alpha", {"alpha": a}) for a in EDGE_ALPHAS]
EVERY_AND_EDGES = pytest.mark.parametrize(
    ("name", "params"), CASES + EDGES, ids=[*IDS, *(f"alpha_{a:.9g}" for a in EDGE_ALPHAS)]
)
NEAR = [1e-9, 1e-6, 3e-4, 1e-2, 0.1249, 0.125, 0.126, 0.5, 0.999, 1.0, 1.001, 2.5]
POINTS = [sign * d for d in [*NEAR, 7.0, 15.0, 20.0] for sign in (1, -1)]
FAR = [sign * d for d in (0.0, 1e-6, 3e-4, 1.0, 20.0, 89.0, 104.0, 120.0, 1e4) for sign in (1, -1)]


def reference(name: str, d: float, alpha: float | None = None) -> tuple[Decimal, Decimal]:
    """f(exp d) as the textbook writes it, and u f'(u), both with 60 digits."""
    x = Decimal(d)
    if name == "alpha":
        with localcontext(prec=160):  # its terms cancel the more, the nearer alpha is to 0 or 1
            a, u = Decimal(alpha), x.exp()
            power = ((1 - a) * x).exp()
            return (power - (1 - a) * u - a) / (a * (a - 1)), (u - power) / a
    u = x.exp()
    root, mean = (x / 2).exp(), (u + 1) / 2
    return {
        "forward_kl": (u - 1 - x, u - 1),
        "reverse_kl": (u * x - u + 1, u * x),
        "js": ((u * x - (u + 1) * mean.ln()) / 2, u * (x - mean.ln()) / 2),
        "hellinger": ((root - 1) ** 2, root * (root - 1)),
        "pearson_chi2": ((u - 1) ** 2, 2 * u * (u - 1)),
        "neyman_chi2": ((u - 1) ** 2 / u, u - 1 / u),
        "total_variation": (abs(u - 1) / 2, u.copy_sign(x) / 2),
        "jeffreys": ((u - 1) * x, u * x + u - 1),
    }[name]


def value_and_gradient(f, d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    d = d.clone().requires_grad_()
    value = f(d)
    (gradient,) = torch.autograd.grad(value.sum(), d)
    return value.detach(), gradient


def worst_error(name: str, params: dict, points, dtype: torch.dtype) -> float:
    """The largest relative error of value and gradient."""
    d = torch.tensor(points, dtype=dtype)
    errors = []
    for at, *found in zip(d.tolist(), *value_and_gradient(generator(name, **params), d), strict=True):
        with localcontext(prec=100):
            true = reference(name, at, **params)
            errors += [abs(Decimal(float(ours)) / exactly - 1) for ours, exactly in zip(found, true, strict=True)]
    return float(max(errors))


@EVERY_AND_EDGES
def test_agrees_with_a_60_digit_reference(name, params):
    """Near zero sign and precision are kept in fp32 too."""
    assert worst_error(name, params, POINTS, torch.float64) < 1e-12
    assert worst_error(name, params, [d for d in POINTS if abs(d) < 3], torch.float32) < 2e-5


RATIOS = st.builds(math.copysign, st.floats(1e-9, 20), st.sampled_from([-1.0, 1.0]))


@settings(max_examples=60, deadline=None)
@given(d=RATIOS, alpha=st.floats(1e-12, 1 - 1e-12) | st.floats(1e-12, 1e-3))
def test_agrees_with_the_reference_at_any_ratio_and_alpha(d, alpha):
    for name in DIVERGENCES:
        params = {"alpha": alpha} if name == "alpha" else {}
        assert worst_error(name, params, [d], torch.float64) < 1e-12, (name, params)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@EVERY_AND_EDGES
def test_finite_non_negative_and_of_the_same_dtype_everywhere(name, params, dtype):
    largest = torch.finfo(dtype).max
    d = torch.tensor([[*FAR, largest, -largest, math.inf, -math.inf]], dtype=dtype)
    value, gradient = value_and_gradient(generator(name, **params), d)
    assert value.dtype == gradient.dtype == dtype and value.shape == d.shape
    assert value.isfinite().all() and gradient.isfinite().all()
    assert (value >= 0).all()
    assert (value[d == 0] == 0).all() and (gradient[d == 0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@EVERY_AND_EDGES
def test_finite_at_every_16_bit_number(name, params, dtype):
    d = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    d = d[d.isfinite()]
    value, gradient = value_and_gradient(generator(name, **params), d)
    assert len(d) > 60_000 and value.isfinite().all() and gradient.isfinite().all()
    assert (value >= 0).all() and (gradient * d.sign() >= 0).all()


@settings(max_examples=60, deadline=None)
@given(ds=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=16, max_size=16))
def test_finite_and_away_from_zero_at_any_fp32_number(ds):
    """f >= 0, and the gradient points away from d = 0 at every d."""
    d = torch.tensor(ds, dtype=torch.float32)
    for name, params in CASES + EDGES:
        value, gradient = value_and_gradient(generator(name, **params), d)
        assert value.isfinite().all() and gradient.isfinite().all(), (name, params)
        assert (value >= 0).all() and (gradient * d.sign() >= 0).all(), (name, params)


@pytest.mark.parametrize("d", [89.0, 120.0, 1e4])
@EVERY
def test_gradient_survives_beyond_the_bound(name, params, d):
    f = divergence(name, **params)
    _, gradient = value_and_gradient(f, torch.tensor([d, BOUND], dtype=torch.float32))
    assert float(gradient[0]) > 1.0
    if f.at_zero == math.inf:  # these must bring back a token that collapsed
        _, gradient = value_and_gradient(f, torch.tensor([-d], dtype=torch.float32))
        assert float(gradient) <= -1.0


@EVERY
def test_continuation_meets_the_generator_with_its_slope(name, params):
    f = divergence(name, **params)
    sides = torch.tensor([BOUND - 1e-9, BOUND + 1e-9, -BOUND - 1e-9, -BOUND + 1e-9], dtype=torch.float64)
    value, gradient = value_and_gradient(f, sides)
    torch.testing.assert_close(value[0::2], value[1::2], rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(gradient[0::2], gradient[1::2], rtol=1e-7, atol=1e-12)


@EVERY
def test_gradcheck(name, params):
    d = torch.tensor([-25.0, -3.0, -0.5, -0.01, 0.02, 0.7, 2.0], dtype=torch.float64, requires_grad=True)
    f = generator(name, **params)
    assert torch.autograd.gradcheck(f, (d,), rtol=1e-4)
    assert torch.autograd.gradgradcheck(f, (d[1:],), rtol=1e-3)


@EVERY
def test_limits_are_as_stated(name, params):
    f = divergence(name, **params)
    far = f.value(torch.tensor([-600.0, 300.0], dtype=torch.float64))
    if math.isinf(f.at_zero):
        assert float(far[0]) > 500
    else:
        assert float(far[0]) == pytest.approx(f.at_zero, rel=1e-9)
    growth = float(far[1]) / math.exp(300)
    assert growth > 100 if math.isinf(f.slope_at_infinity) else growth == pytest.approx(f.slope_at_infinity)


@EVERY
def test_second_derivative_is_as_stated(name, params):
    """f''(1) by differences along u of the generator itself: 0.25 for JS, 0.5 for Hellinger, 2 for both chi-squared."""
    f, step = divergence(name, **params), 1e-4
    left, middle, right = f(torch.log(torch.tensor([1 - step, 1, 1 + step], dtype=torch.float64))).tolist()
    if f.second_derivative_at_1 is None:
        assert right == pytest.approx(step / 2, rel=1e-4)  # a kink: it rises at once
    else:
        assert (left - 2 * middle + right) / step**2 == pytest.approx(f.second_derivative_at_1, rel=1e-6)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_method_has_the_curvature_of_its_divergence(name):
    method = MethodConfig("exploration", "near_perfect", name, alpha=0.5 if name == "alpha" else None)
    if name == "total_variation":
        with pytest.raises(ValueError, match="total_variation has a kink"):
            _ = method.curvature
    else:
        assert method.curvature == DIVERGENCES[name].second_derivative_at_1


def textbook(name: str, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The divergence of reference p and policy q as a sum over categories, no generator in it."""

    def kl(a, b):
        return (a * (a / b).log()).sum()

    m = (p + q) / 2
    return {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "js": lambda: (kl(p, m) + kl(q, m)) / 2,
        "hellinger": lambda: 2 - 2 * (p * q).sqrt().sum(),
        "pearson_chi2": lambda: (q**2 / p).sum() - 1,
        "neyman_chi2": lambda: (p**2 / q).sum() - 1,
        "total_variation": lambda: (p - q).abs().sum() / 2,
        "jeffreys": lambda: kl(p, q) + kl(q, p),
    }[name]()


@EVERY
def test_expected_gradient_of_the_estimator_is_that_of_the_divergence(name, params):
    """All tokens, each with its probability under pi_ref: value and gradient of the true divergence."""
    torch.manual_seed(0)
    p = torch.randn(7, dtype=torch.float64).softmax(-1)
    logits = torch.randn(7, dtype=torch.float64, requires_grad=True)
    estimate = (p * generator(name, **params)(logits.log_softmax(-1) - p.log())).sum()
    if name == "alpha":
        a = params["alpha"]
        true = ((p**a * logits.softmax(-1) ** (1 - a)).sum() - 1) / (a * (a - 1))
    else:
        true = textbook(name, p, logits.softmax(-1))
    for other in (true, exact(name, p, logits.softmax(-1), **params)):
        torch.testing.assert_close(estimate, other, rtol=1e-10, atol=0)
        torch.testing.assert_close(
            torch.autograd.grad(estimate, logits, retain_graph=True)[0],
            torch.autograd.grad(other, logits, retain_graph=True)[0],
            rtol=1e-9,
            atol=1e-12,
        )


@EVERY
def test_exact_handles_zeros(name, params):
    p, q = torch.tensor([0.5, 0.5, 0.0, 0.0]), torch.tensor([0.5, 0.0, 0.5, 0.0])
    f = divergence(name, **params)
    expected = 0.5 * f.at_zero + 0.5 * f.slope_at_infinity
    assert float(exact(name, p, q, **params)) == pytest.approx(expected)
    assert float(exact(name, p, p, **params)) == 0
    batched = exact(name, torch.stack([p, p]), torch.stack([q, p]), **params)
    assert batched.dtype == torch.float64 and batched.shape == (2,)


def test_nan_is_not_hidden():
    assert generator("js")(torch.tensor([math.nan])).isnan().all()


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("kl", {}, "choose one of forward_kl"),
        ("alpha", {}, "alpha=0.5"),
        ("js", {"alpha": 0.5}, "no parameters"),
        ("alpha", {"alpha": 1.0}, "forward_kl"),
        ("alpha", {"alpha": math.nan}, r"\(0, 1\)"),
    ],
)
def test_wrong_names_and_parameters_are_refused(name, params, message):
    with pytest.raises(ValueError, match=message):
        generator(name, **params)


def test_wrong_inputs_are_refused():
    with pytest.raises(TypeError, match="floating dtype"):
        generator("js")(torch.tensor([1, 2]))
    for bad in ([0.5, 0.6], [1.5, -0.5], [math.nan, 1.0]):
        with pytest.raises(ValueError, match="p_theta_V is not a distribution"):
            exact("js", torch.tensor([0.5, 0.5]), torch.tensor(bad))


@pytest.fixture(scope="module")
def whole():
    """Every sequence of 3 tokens of a vocabulary of 7: log-probs of all tokens and of its own under two Llamas."""
    shape = LlamaConfig(vocab_size=7, max_position_embeddings=8, **SHAPE | {"hidden_size": 16})
    torch.manual_seed(0)
    base, policy = (LlamaForCausalLM(shape).double().eval() for _ in range(2))
    sequences = torch.tensor([[0, *tokens] for tokens in itertools.product(range(7), repeat=3)])
    found = []
    for model in (base, policy):
        with torch.no_grad():
            model.get_output_embeddings().weight *= 20  # sharper, yet no answer's ratio beyond BOUND
        log_p_S_T_V = model(input_ids=sequences[:, :-1]).logits.log_softmax(-1)
        found.append((log_p_S_T_V, log_p_S_T_V.gather(-1, sequences[:, 1:, None])[..., 0]))
    return list(policy.parameters()), *(tensor.detach() for tensor in found[0]), *found[1]


@EVERY
def test_tokens_of_a_whole_model(whole, name, params):
    """Token level, as training does it: over all stored answers, the tokens' mean is the expected divergence of the
    next-token distributions, prefixes from the reference; value and gradient."""
    weights, ref_S_T_V, ref_S_T, log_p_S_T_V, log_p_S_T = whole
    p_ref_S_1 = ref_S_T.sum(-1, keepdim=True).exp()
    estimate = (p_ref_S_1 * generator(name, **params)(log_p_S_T - ref_S_T)).sum()
    true = (p_ref_S_1 * exact(name, ref_S_T_V.exp(), log_p_S_T_V.exp(), **params)).sum()
    torch.testing.assert_close(estimate, true, rtol=1e-10, atol=0)
    ours, theirs = (
        torch.cat([g.flatten() for g in torch.autograd.grad(value, weights, retain_graph=True)])
        for value in (estimate, true)
    )
    # down to the fp32 in which a Llama computes its norms, whatever its dtype
    assert float(theirs.norm()) > 0 and float((ours - theirs).norm() / theirs.norm()) < 1e-5


@settings(max_examples=40, deadline=None)
@given(logits=st.lists(st.tuples(st.floats(-8, 8), st.floats(-8, 8)), min_size=3, max_size=9), cut=st.integers(1, 2))
def test_properties_of_the_divergence(logits, cut):
    """Not negative; zero for equal arguments; no larger after outcomes were lumped together."""
    p, q = torch.tensor(logits, dtype=torch.float64).softmax(0).T
    lumped = [torch.cat([x[:cut], x[cut:].sum(0, keepdim=True)]) for x in (p, q)]
    for name, params in CASES:
        full, coarse = float(exact(name, p, q, **params)), float(exact(name, *lumped, **params))
        assert full >= 0 and float(exact(name, p, p, **params)) == pytest.approx(0, abs=1e-15)
        assert coarse <= full * (1 + 1e-9) + 1e-14, (name, params)
