"""Muon in fp32 beside torch's own in bfloat16."""

from __future__ import annotations

import pytest
import torch

from dphlib.training.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(8, 8), (16, 8), (8, 16)])
def test_steps_equal_those_of_torch_up_to_its_rounding(shape):
    torch.manual_seed(0)
    start = [torch.randn(shape) for _ in range(3)]
    gradients = [[torch.randn(shape) for _ in start] for _ in range(4)]
    ended = []
    for make in (lambda p: Muon(p, lr=0.02), lambda p: torch.optim.Muon(p, lr=0.02, weight_decay=0.01)):
        params = [torch.nn.Parameter(matrix.clone()) for matrix in start]
        optimizer = make(params)
        for step in gradients:
            for param, gradient in zip(params, step, strict=True):
                param.grad = gradient.clone()
            optimizer.step()
        ended.append(torch.stack([param.detach() for param in params]))
    moved = (ended[0] - torch.stack(start)).abs().max()
    assert moved > 0.02
    torch.testing.assert_close(ended[0], ended[1], atol=0.03 * float(moved), rtol=0)


def test_singular_values_come_out_near_one():
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalised(torch.randn(4, 32, 8)))
    assert values.min() > 0.6 and values.max() < 1.25


def test_a_matrix_without_a_gradient_stays_and_a_vector_is_refused():
    param = torch.nn.Parameter(torch.ones(2, 2))
    Muon([param], lr=0.1).step()
    assert torch.equal(param, torch.ones(2, 2))
    with pytest.raises(ValueError, match="AdamW"):
        Muon([torch.nn.Parameter(torch.ones(2))], lr=0.1)
