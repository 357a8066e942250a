"""Chunked log-probabilities equal the plain way, in value, gradient and memory promise."""

from __future__ import annotations

import pytest
import torch

from dphlib import logprobs as module
from dphlib.logprobs import logprobs_from_hidden

torch.set_num_threads(1)


def plain(hidden, weight, tokens, temperature=1.0):
    log_p = (hidden @ weight.T / temperature).log_softmax(-1)
    return log_p.gather(-1, tokens[:, None]).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


def example(n=13, d=5, v=11, dtype=torch.float64):
    torch.manual_seed(0)
    hidden = (3 * torch.randn(n, d, dtype=dtype)).requires_grad_()
    weight = torch.randn(v, d, dtype=dtype).requires_grad_()
    return hidden, weight, torch.randint(v, (n,)), torch.randn(n, dtype=dtype), torch.randn(n, dtype=dtype)


@pytest.mark.parametrize("chunk", [None, 1, 4, 13, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_the_plain_way(chunk, temperature):
    hidden, weight, tokens, a, b = example()
    ours = logprobs_from_hidden(hidden, weight, tokens, temperature=temperature, chunk=chunk, with_entropy=True)
    true = plain(hidden, weight, tokens, temperature)
    torch.testing.assert_close(ours, true, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad((a * lp + b * h).sum(), (hidden, weight)) for lp, h in (ours, true)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-10, atol=1e-12)
    true = plain(hidden, weight, tokens, temperature)
    alone = logprobs_from_hidden(hidden, weight, tokens, temperature=temperature, chunk=chunk)
    torch.testing.assert_close(alone, true[0], rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad((a * lp).sum(), (hidden, weight)) for lp in (alone, true[0])]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-10, atol=1e-12)


def test_gradcheck():
    hidden, weight, tokens, _, _ = example(n=4, d=3, v=5)
    f = lambda h, w: logprobs_from_hidden(h, w, tokens, temperature=1.3, chunk=3, with_entropy=True)  # noqa: E731
    assert torch.autograd.gradcheck(f, (hidden, weight))


def test_bf16_is_accumulated_in_fp32():
    hidden, weight, tokens, a, _ = example(n=40, d=64, v=300, dtype=torch.float32)
    half_hidden, half_weight = (x.detach().bfloat16().requires_grad_() for x in (hidden, weight))
    ours = logprobs_from_hidden(half_hidden, half_weight, tokens, chunk=7)
    assert ours.dtype == torch.float32
    full = [x.detach().float().requires_grad_() for x in (half_hidden, half_weight)]
    true, _ = plain(*full, tokens)
    torch.testing.assert_close(ours, true, rtol=1e-5, atol=1e-4)
    grads = torch.autograd.grad((a * ours).sum(), (half_hidden, half_weight))
    assert {g.dtype for g in grads} == {torch.bfloat16}
    for ours_g, true_g in zip(grads, torch.autograd.grad((a * true).sum(), full), strict=True):
        assert float((ours_g.float() - true_g).norm() / true_g.norm()) < 0.01


def test_16_bit_activations_beside_fp32_weights():
    hidden, weight, tokens, _, _ = example(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = logprobs_from_hidden(hidden.bfloat16(), weight, tokens)
    torch.testing.assert_close(ours, plain(hidden.bfloat16().float(), weight, tokens)[0])


@pytest.mark.parametrize("which", [0, 1])
def test_only_the_gradient_that_is_asked_for(which):
    inputs = list(example()[:3])
    inputs[1 - which] = inputs[1 - which].detach()
    ours = torch.autograd.grad(logprobs_from_hidden(*inputs, chunk=5).sum(), inputs[which])[0]
    true = torch.autograd.grad(plain(*inputs)[0].sum(), inputs[which])[0]
    torch.testing.assert_close(ours, true)


@pytest.mark.parametrize("chunk", [None, 1, 4, 13])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_under_a_frozen_weight_the_forward_pass_does_all_the_work(chunk, temperature, monkeypatch):
    """As in LoRA: the hidden states' gradient is the plain way's, and the logits are not made a second time."""
    hidden, weight, tokens, a, _ = example()
    weight = weight.detach()
    true = torch.autograd.grad((a * plain(hidden, weight, tokens, temperature)[0]).sum(), hidden)[0]
    logprobs = logprobs_from_hidden(hidden, weight, tokens, temperature=temperature, chunk=chunk)
    torch.testing.assert_close(logprobs, plain(hidden, weight, tokens, temperature)[0], rtol=1e-12, atol=1e-12)
    products = []
    monkeypatch.setattr(module, "_matmul", lambda a, b: products.append(a.shape) or a @ b)
    (ours,) = torch.autograd.grad((a * logprobs).sum(), hidden)
    torch.testing.assert_close(ours, true, rtol=1e-10, atol=1e-12)
    assert len(products) == (1 if chunk in (None, 13) else 0)  # what fits one chunk is kept for the backward pass
    with torch.no_grad():
        scored = logprobs_from_hidden(hidden, weight, tokens, temperature=temperature, chunk=chunk)
    assert torch.equal(scored, logprobs)


@pytest.mark.parametrize("trained", [True, False])
def test_confident_tokens_keep_their_gradient_in_16_bits(trained):
    """1 - p is small there, and would be lost if p were rounded before the difference is taken."""
    hidden, weight = torch.tensor([[1.0, 0.0]] * 9), torch.tensor([[9.0, 1.0], [0.0, 0.5], [0.0, -1.0]])
    hidden, weight = hidden.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_(trained)
    logprobs_from_hidden(hidden, weight, torch.zeros(9, dtype=torch.long), chunk=2).sum().backward()
    full = hidden.detach().float().requires_grad_()
    plain(full, weight.detach().float(), torch.zeros(9, dtype=torch.long))[0].sum().backward()
    assert float((hidden.grad.float() - full.grad).norm() / full.grad.norm()) < 0.01


def test_large_logits_stay_finite():
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    logprobs, entropy = logprobs_from_hidden(
        hidden, torch.tensor([[1.0], [0.0]]), torch.tensor([0, 0]), with_entropy=True
    )
    torch.testing.assert_close(logprobs, torch.tensor([0.0, -1e4]))
    torch.testing.assert_close(entropy, torch.zeros(2))
    (logprobs + entropy).sum().backward()
    torch.testing.assert_close(hidden.grad, torch.tensor([[0.0], [1.0]]))


def test_no_tokens():
    hidden = torch.zeros(0, 3, requires_grad=True)
    logprobs = logprobs_from_hidden(hidden, torch.ones(4, 3), torch.zeros(0, dtype=torch.long))
    logprobs.sum().backward()
    assert logprobs.shape == (0,) and hidden.grad.shape == (0, 3)


def test_never_holds_more_logits_than_a_chunk(monkeypatch):
    largest = 0
    multiply = module._matmul

    def watched(a, b):
        nonlocal largest
        product = multiply(a, b)
        if product.shape[-1] == 11:
            largest = max(largest, product.numel())
        return product

    monkeypatch.setattr(module, "_matmul", watched)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 35)
    hidden, weight, tokens, _, _ = example()
    logprobs_from_hidden(hidden, weight, tokens).sum().backward()
    assert largest == 33  # 3 tokens x 11 entries


def test_wrong_inputs_are_refused():
    hidden, weight, tokens, _, _ = example()
    with pytest.raises(ValueError, match=r"\(N, D\), \(V, D\)"):
        logprobs_from_hidden(hidden, weight.T, tokens)
    with pytest.raises(ValueError, match=r"\(N,\)"):
        logprobs_from_hidden(hidden, weight, tokens[:-1])
    with pytest.raises(ValueError, match="temperature is 0"):
        logprobs_from_hidden(hidden, weight, tokens, temperature=0)
    with pytest.raises(ValueError, match="chunk is 0"):
        logprobs_from_hidden(hidden, weight, tokens, chunk=0)
    with pytest.raises((RuntimeError, IndexError)):
        logprobs_from_hidden(hidden, weight, torch.full_like(tokens, -100))
