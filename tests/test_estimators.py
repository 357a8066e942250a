"""The top-K estimate: a lower bound that grows with K to the divergence, its unbiased sibling, and the stored file."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dphlib.divergences import DIVERGENCES, exact, generator
from dphlib.logprobs import binned_logprobs_from_hidden
from dphlib.training.estimators import (
    PLAIN_BYTES,
    TopK,
    as_stored,
    bytes_per_token,
    load_topk,
    sampled_tail_divergence,
    save_topk,
    topk_divergence,
    topk_reference,
)

torch.set_num_threads(1)

CASES = [(name, {"alpha": 0.5} if name == "alpha" else {}) for name in DIVERGENCES]
EVERY = pytest.mark.parametrize(("name", "params"), CASES, ids=[name for name, _ in CASES])


def models(n: int = 6, d: int = 5, v: int = 12, seed: int = 0):
    """Hidden states and output weights of a reference and of a policy, float64; the policy's with gradient."""
    noise = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=noise, dtype=torch.float64)

    ref = draw(n, d), draw(v, d)
    return ref, tuple((x + 0.4 * draw(*x.shape)).requires_grad_() for x in ref)


def full(hidden, weight):
    return (hidden @ weight.T).log_softmax(-1)


def topk_at(k: int, ref, policy, f):
    top = topk_reference(*ref, k)
    return topk_divergence(binned_logprobs_from_hidden(*policy, top.ids_N_K), top.logprobs_N_K1.double(), f)


@EVERY
def test_a_lower_bound_that_rises_with_k_to_the_divergence(name, params):
    ref, policy = models()
    true = exact(name, full(*ref).exp(), full(*policy).exp(), **params)
    values = torch.stack([topk_at(k, ref, policy, generator(name, **params)) for k in range(1, 13)]).detach()
    assert (values.diff(dim=0) >= -1e-6).all()  # the reference is kept in fp32
    assert (values <= true + 1e-6).all()
    torch.testing.assert_close(values[-1], true.detach(), rtol=1e-5, atol=1e-6)
    assert (values[0] < 0.99 * true).any()


@settings(max_examples=40)
@given(
    logits=st.lists(st.tuples(st.floats(-6, 6), st.floats(-6, 6)), min_size=3, max_size=10),
    k=st.integers(1, 9),
)
def test_lumping_never_adds(logits, k):
    """Data processing, for every divergence, at any two distributions."""
    log_p, log_q = torch.tensor(logits, dtype=torch.float64).log_softmax(0).T
    order = log_p.argsort(descending=True)
    k = min(k, len(logits))

    def bins(log_x):
        return torch.cat([log_x[order[:k]], log_x[order[k:]].logsumexp(0, keepdim=True)])[None]

    for name, params in CASES:
        lumped = float(topk_divergence(bins(log_q), bins(log_p), generator(name, **params)))
        true = float(exact(name, log_p.exp(), log_q.exp(), **params))
        assert -1e-15 <= lumped <= true * (1 + 1e-9) + 1e-14, name


@EVERY
def test_nothing_is_missed_where_the_rest_keeps_its_proportions(name, params):
    p = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=torch.float64)
    q = torch.cat([torch.tensor([0.1, 0.6], dtype=torch.float64), p[2:]])
    top = TopK(torch.tensor([[0, 1]]), torch.tensor([[0.4, 0.3, 0.3]]).log())
    bins = torch.tensor([[0.1, 0.6, 0.3]], dtype=torch.float64).log()
    ours = topk_divergence(bins, top.logprobs_N_K1, generator(name, **params))
    assert float(ours) == pytest.approx(float(exact(name, p, q, **params)), rel=1e-5)


@EVERY
def test_gradient_is_that_of_the_lumped_divergence_and_with_all_tokens_of_the_whole(name, params):
    ref, policy = models()
    top = topk_reference(*ref, 4)

    def lump(log_p):
        rest = log_p.scatter(-1, top.ids_N_K, -math.inf).logsumexp(-1, keepdim=True)
        return torch.cat([log_p.gather(-1, top.ids_N_K), rest], -1).exp()

    f = generator(name, **params)
    cases = [
        (topk_at(4, ref, policy, f), exact(name, lump(full(*ref)), lump(full(*policy)), **params)),
        (topk_at(12, ref, policy, f), exact(name, full(*ref).exp(), full(*policy).exp(), **params)),
    ]
    for ours, true in cases:
        ours_g, true_g = (torch.autograd.grad(x.sum(), policy) for x in (ours, true))
        torch.testing.assert_close(ours_g, true_g, rtol=1e-5, atol=1e-5)


@EVERY
@pytest.mark.parametrize("k", [1, 4, 12])
def test_sampled_tail_is_unbiased_in_value_and_gradient(name, params, k):
    """Every token as the stored one, each with its probability."""
    ref, policy = models(n=2)
    ref_V, f, top = full(*ref), generator(name, **params), topk_reference(*ref, k)
    top = TopK(top.ids_N_K, torch.cat([ref_V.gather(-1, top.ids_N_K), top.logprobs_N_K1[:, -1:].double()], -1))
    expected = torch.zeros(2, dtype=torch.float64)
    for v in range(12):
        tokens = torch.full((2,), v)
        d = full(*policy)[:, v] - ref_V[:, v]
        bins = binned_logprobs_from_hidden(*policy, top.ids_N_K)
        expected = expected + ref_V[:, v].exp() * sampled_tail_divergence(bins, top, tokens, d, f)
    true = exact(name, ref_V.exp(), full(*policy).exp(), **params)
    torch.testing.assert_close(expected, true, rtol=1e-9, atol=1e-12)
    grads = [torch.autograd.grad(x.sum(), policy) for x in (expected, true)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-8, atol=1e-10)


@EVERY
def test_a_collapsed_token_is_pulled_back_at_every_position_that_has_it(name, params):
    """The policy gives a likely token 40 nats less: all is finite, and where f(0) is infinite it is pulled."""
    log_p = torch.tensor([[0.5, 0.3, 0.1, 0.1]]).log()
    logits = torch.tensor([[0.0, -40.0, 0.0, 0.0]], requires_grad=True)
    bins = logits.log_softmax(-1)
    value = topk_divergence(bins, log_p, generator(name, **params)).sum()
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()
    if math.isinf(DIVERGENCES[name].at_zero):
        assert float(-logits.grad[0, 1]) > 0.29


def test_an_empty_bin_costs_nothing_and_has_no_gradient():
    bins = torch.tensor([[0.5, 0.5, 0.0]]).log().requires_grad_()
    value = topk_divergence(bins, torch.tensor([[0.25, 0.75, 0.0]]).log(), generator("forward_kl"))
    value.sum().backward()
    assert value.isfinite().all() and bins.grad.isfinite().all() and float(bins.grad[0, 2]) == 0


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="same K tokens"):
        topk_divergence(torch.zeros(2, 3), torch.zeros(2, 4), generator("js"))


# --- The stored file ------------------------------------------------------------------------------


def stored(lengths=(3, 1, 5), k=4, v=50):
    noise = torch.Generator().manual_seed(1)
    return [
        topk_reference(3 * torch.randn(n, 8, generator=noise), torch.randn(v, 8, generator=noise), k) for n in lengths
    ]


@pytest.mark.parametrize(("dtype", "worst"), [(torch.float32, 1e-6), (torch.float16, 4e-3)])
@pytest.mark.parametrize("vocabulary", [50, 128_256])
def test_a_file_gives_back_what_was_stored(tmp_path, dtype, worst, vocabulary):
    before = stored()
    save_topk(tmp_path / "topk.safetensors", before, vocabulary, dtype)
    after = load_topk(tmp_path / "topk.safetensors")
    assert [len(top.ids_N_K) for top in after] == [3, 1, 5]
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one.ids_N_K, other.ids_N_K) and other.ids_N_K.dtype == torch.long
        torch.testing.assert_close(one.logprobs_N_K1, other.logprobs_N_K1, rtol=0, atol=worst)
        torch.testing.assert_close(other.logprobs_N_K1.logsumexp(-1), torch.zeros(len(other.ids_N_K)))
        torch.testing.assert_close(as_stored(one, dtype), other)


@pytest.mark.parametrize(("k", "vocabulary", "dtype"), [(8, 500, torch.float16), (8, 128_256, torch.float32)])
def test_the_file_has_the_bytes_that_arithmetic_says_and_at_most_ten_times_the_plain_ones(
    tmp_path, k, vocabulary, dtype
):
    tokens = 4000
    save_topk(tmp_path / "topk.safetensors", stored((tokens,), k, 500), vocabulary, dtype)
    size = (tmp_path / "topk.safetensors").stat().st_size
    assert bytes_per_token(k, vocabulary, dtype) <= 10 * PLAIN_BYTES
    assert PLAIN_BYTES + size / tokens == pytest.approx(bytes_per_token(k, vocabulary, dtype), abs=0.2)


def test_float16_moves_the_estimate_by_little():
    ref, policy = models(n=40)
    top = topk_reference(*ref, 4)
    bins = binned_logprobs_from_hidden(*policy, top.ids_N_K)
    for name, params in CASES:
        whole, rounded = (
            topk_divergence(bins, t.logprobs_N_K1, generator(name, **params)).mean().item()
            for t in (top, as_stored(top, torch.float16))
        )
        assert rounded == pytest.approx(whole, rel=5e-3), name


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="all with the same K"):
        save_topk(tmp_path / "x", [*stored(k=4), *stored(k=5)], 50)
    with pytest.raises(ValueError, match="all with the same K"):
        save_topk(tmp_path / "x", [], 50)
    with pytest.raises(ValueError, match=r"torch\.float16"):
        save_topk(tmp_path / "x", stored(), 50, torch.bfloat16)
    with pytest.raises(FileNotFoundError, match="no stored top K"):
        load_topk(tmp_path / "none.safetensors")
