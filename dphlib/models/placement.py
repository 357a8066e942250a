"""Device, number format and attention kernel, chosen from the hardware and told in one line.

It decides nothing about what is trained, see `tuning`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how a model computes; printable, and plain data for a run's record.

    Args:
        device: torch's name of it.
        dtype: of weights and activations: `float32`, `bfloat16` or `float16`.
        attention: Transformers' name of the attention kernel.
        notes: what the user should know about the choice.

    >>> print(Placement("cpu", "float32", "sdpa", ("no GPU found",)))
    cpu, float32, sdpa (no GPU found)
    """

    device: str
    dtype: str
    attention: str
    notes: tuple[str, ...] = ()

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def __str__(self) -> str:
        line = f"{self.device}, {self.dtype}, {self.attention}"
        return f"{line} ({'; '.join(self.notes)})" if self.notes else line


def choose_placement() -> Placement:
    """The placement for this machine's first GPU, or for its CPU when it has none."""
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    return placement_for(capability, capability is not None and capability >= (8, 0) and _flash_imports())


def placement_for(capability: tuple[int, int] | None, flash_imports: bool) -> Placement:
    """The placement for a CUDA compute capability, None for a CPU.

    Ampere (8.0) and later: bfloat16, and flash-attention when it can be imported, else PyTorch's own fused kernel.
    Volta and Turing, such as Colab's T4: float16, whose range ends at 65,504, so only adapters are trained there.

    >>> placement_for((9, 0), False).dtype
    'bfloat16'
    """
    if capability is None:
        return Placement("cpu", "float32", "sdpa", ("no CUDA GPU",))
    if capability >= (8, 0):
        return Placement("cuda", "bfloat16", "flash_attention_2" if flash_imports else "sdpa")
    version = ".".join(map(str, capability))
    if capability >= (7, 0):
        warning = f"compute capability {version} has no bfloat16: float16 can overflow; train adapters, watch grad_norm"
        return Placement("cuda", "float16", "sdpa", (warning,))
    return Placement("cuda", "float32", "sdpa", (f"compute capability {version} has no fast 16-bit format",))


def _flash_imports() -> bool:
    """A build for another torch is installed and still fails to import, so importing it is the only test."""
    try:
        importlib.import_module("flash_attn")
    except Exception:  # whatever a broken build raises, the way out is the same
        return False
    return True
