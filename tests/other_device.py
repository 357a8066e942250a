"""A second device that is made up: computes on the CPU, and lets no tensor of one device meet one of the other.

What stands on a device is remembered by the tensor's memory, so views stand where their base does. PyTorch calls the
mode before each function that Python calls, and there it is asked what a GPU would be asked: are the arguments on one
device? What C++ makes by itself (gradients) is taken for what it meets.

Not simulated: a GPU's arithmetic, memory and kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch as functorch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
_MOVES = frozenset({Tensor.to, Tensor.cpu})
_INDEXES = frozenset({Tensor.__getitem__, Tensor.__setitem__})
_FACTORIES = frozenset(
    {
        torch.tensor,
        torch.zeros,
        torch.ones,
        torch.empty,
        torch.full,
        torch.arange,
        torch.rand,
        torch.randn,
        torch.randperm,
        torch.as_tensor,
        torch.eye,
        torch.linspace,
    }
)


class OneDevice(TorchFunctionMode):
    """While it is entered, tensors of `GPU` and of the CPU exist, and mixing them raises AssertionError."""

    def __init__(self) -> None:
        super().__init__()
        self._where: dict[int, tuple[StorageWeakRef, torch.device]] = {}

    def put(self, module: nn.Module) -> nn.Module:
        """The module, with its weights and buffers on `GPU`."""
        for tensor in (*module.parameters(), *module.buffers()):
            self._place(tensor, GPU)
        return module

    def where(self, tensor: Tensor) -> torch.device | None:
        """The tensor's device; None where nothing is known of it."""
        reference, device = self._where.get(_storage(tensor)._cdata, (None, None))
        return device if reference is not None and not reference.expired() else None

    def _place(self, value: Any, device: torch.device) -> None:
        for tensor in _tensors(value):
            storage = _storage(tensor)
            self._where[storage._cdata] = StorageWeakRef(storage), device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:
            return self.where(args[0]) or CPU
        if func == Tensor.is_cuda.__get__:
            return self.where(args[0]) == GPU
        if func == Tensor.grad.__get__:
            if (gradient := func(*args)) is not None and (device := self.where(args[0])):
                self._place(gradient, device)
            return gradient
        if func is Tensor.numpy and self.where(args[0]) == GPU:
            raise AssertionError("numpy() of a tensor on a GPU")
        asked, args, kwargs = _asked(func, args, kwargs)
        # A tensor without dimensions is a number, which may be the CPU's.
        met = [tensor for tensor in _tensors(_must_meet(func, args), kwargs) if tensor.dim() > 0]
        if func not in _MOVES and func is not Tensor.copy_ and len({self.where(tensor) for tensor in met} - {None}) > 1:
            shapes = [(tuple(tensor.shape), str(self.where(tensor))) for tensor in met]
            raise AssertionError(f"{getattr(func, '__name__', func)} of tensors on two devices: {shapes}")
        device = asked or self._of_result(func, args, kwargs)
        result = func(*args, **kwargs)
        if func in _MOVES and self.where(args[0]) not in (None, device):
            result = result.clone()  # the CPU alone would give the tensor itself
        if device is not None:
            self._place(result, device)
        return result

    def _of_result(self, func: Any, args: Any, kwargs: Any) -> torch.device | None:
        if func in _INDEXES or func is Tensor.copy_:
            return self.where(args[0])
        known = {self.where(tensor) for tensor in _tensors(args, kwargs)} - {None}
        if GPU in known:
            return GPU
        return CPU if known or func in _FACTORIES else None


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    while functorch.is_functorch_wrapped_tensor(tensor):  # within vmap, by which masks are made
        tensor = functorch.get_unwrapped(tensor)
    return tensor.untyped_storage()


def _tensors(*values: Any) -> Iterator[Tensor]:
    return (item for item in tree_iter(values) if isinstance(item, Tensor))


def _must_meet(func: Any, args: Any) -> Any:
    """The arguments that must be on one device: an index of a GPU's tensor may be the CPU's."""
    return (args[0], *args[2:]) if func in _INDEXES else args


def _asked(func: Any, args: Any, kwargs: Any) -> tuple[torch.device | None, Any, Any]:
    """The device that a call names, and its arguments with the CPU in that place."""
    asked = kwargs.get("device")
    if asked is not None:
        kwargs = kwargs | {"device": CPU}
    if func is Tensor.cpu:
        asked = CPU
    if func is Tensor.to:
        asked = next((value for value in args[1:] if isinstance(value, (torch.device, str))), asked)
        args = (args[0], *(CPU if isinstance(value, (torch.device, str)) else value for value in args[1:]))
    if asked is not None:
        asked = GPU if torch.device(asked).type == "cuda" else CPU
    return asked, args, kwargs
