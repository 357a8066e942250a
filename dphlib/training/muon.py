"""Muon in fp32: momentum made orthogonal by Newton-Schulz iterations, matrices of one shape in one batch.

The update is that of `torch.optim.Muon` (Jordan et al., github.com/KellerJordan/Muon) with its defaults. That one
iterates in bfloat16, which a CPU without instructions for it computes thirty times slower than fp32, and rounds
otherwise. Here the numbers do not depend on whether the CPU has them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPSILON = 1e-7


def orthogonalised(matrices_M_R_C: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: each singular value comes out between about 0.7 and 1.2.

    Args:
        matrices_M_R_C: M matrices of R rows and C columns.

    >>> orthogonalised(torch.eye(2)[None] * 5).diagonal(dim1=1, dim2=2).sub(1).abs().max() < 0.35
    tensor(True)
    """
    a, b, c = _COEFFICIENTS
    tall = matrices_M_R_C.shape[1] > matrices_M_R_C.shape[2]
    x = matrices_M_R_C.mT if tall else matrices_M_R_C
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_EPSILON)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """For weight matrices of hidden layers; embeddings, norms and heads go to AdamW.

    Args:
        params: matrices.
        lr: of a square matrix; one with more rows than columns takes sqrt(rows / columns) times that.
        weight_decay: decoupled, a share of lr.
        momentum: of the Nesterov average of gradients.

    Raises:
        ValueError: a parameter that is not a matrix.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float = 0.01, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for param in (param for group in self.param_groups for param in group["params"]):
            if param.ndim != 2:
                raise ValueError(f"a parameter of shape {tuple(param.shape)}: Muon takes matrices, give it to AdamW")

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update from the gradients; those without one stay."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                average = state.setdefault("average", torch.zeros_like(param))
                average.lerp_(param.grad, 1 - momentum)
                by_shape[param.shape].append((param, param.grad.lerp(average, momentum)))
            for (rows, columns), pairs in by_shape.items():
                updates = orthogonalised(torch.stack([update for _, update in pairs]))
                for (param, _), update in zip(pairs, updates, strict=True):
                    param.mul_(1 - lr * group["weight_decay"]).add_(update, alpha=-lr * max(1, rows / columns) ** 0.5)
