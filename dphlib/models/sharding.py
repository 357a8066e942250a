"""A policy whose weights, gradients and moments are cut over the processes: FSDP2, with Accelerate's settings.

    policy = shard(policy, processes)           # before the optimizer is made
    whole(parameter)                            # all of it, on every process: a collective call

1. Accelerate's own preparation puts output layer and last norm into a unit of their own, which `model(...)` gathers.
   Log-probs here come from hidden states and the output layer's weight (`scoring`), so the layers are units and all
   else is one, gathered for the whole of `score_rows`.
2. Weights of 16 bits are kept as fp32 shards, gathered and used in 16 bits; gradients are added up in fp32, not
   averaged, for the denominators are those of the whole batch. So the optimizer needs no copies.
3. What every process must do equally often is a forward and a backward pass, see `passes`.

Only policies that are trained whole: adapters fit one GPU beside their frozen base. On a CPU by gloo it runs too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dphlib.runtime.files import RunError
from dphlib.runtime.processes import Processes


def shard(policy: PreTrainedModel, processes: Processes) -> PreTrainedModel:
    """`policy` itself, sharded; each process comes with all of it, on its own device.

    `reshard_after_forward` and `offload_params` are read from the launch configuration, as Accelerate hands them on.

    Raises:
        RunError: an adapter, or a model whose layers are not known.
    """
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    if hasattr(policy, "peft_config"):
        raise RunError(
            "FSDP2 is for policies that are trained whole; an adapter fits one GPU beside its base: launch with "
            "docs/accelerate/ddp.yaml"
        )
    kinds = set(policy._no_split_modules or ())
    layers = [module for module in policy.modules() if type(module).__name__ in kinds]
    if not layers:
        raise RunError(f"{type(policy).__name__} names no layer class, so it cannot be sharded; launch with ddp.yaml")
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    half = policy.dtype if policy.dtype in (torch.bfloat16, torch.float16) else None
    settings = {
        "mesh": init_device_mesh(policy.device.type, (processes.count,)),
        "mp_policy": MixedPrecisionPolicy(half, torch.float32 if half else None, cast_forward_inputs=half is not None),
        "offload_policy": plugin.cpu_offload,
    }
    for layer in layers:
        fully_shard(layer, reshard_after_forward=plugin.reshard_after_forward, **settings)
    fully_shard(policy, reshard_after_forward=False, **settings)
    if half is not None:
        policy.float()  # the shards
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    policy.with_weights = _call
    register_fsdp_forward_method(policy, "with_weights")
    policy.kept_dtype = half or policy.dtype
    return policy


def _call(work: Callable[[], Any]) -> Any:
    return work()


def is_sharded(policy: Any) -> bool:
    """Whether `shard` made it."""
    return hasattr(policy, "with_weights")


def whole(tensor: Tensor, keep: bool = True) -> Tensor:
    """All of a sharded tensor, with `keep=False` nothing of it; any other tensor as it is.

    Every process must call it for the same tensors in the same order, those that keep nothing too.
    """
    if not hasattr(tensor, "full_tensor"):  # of `DTensor`, whose import takes a second
        return tensor
    full = tensor.detach().full_tensor()
    return full if keep else full.new_empty(0)


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """What this process holds of a whole `tensor` that is to be cut as `like` is; no message is sent."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole_state(policy: PreTrainedModel, keep: bool = True) -> dict[str, Tensor]:
    """`state_dict` of a policy, whole, on the CPU, in the format that it computes in; nothing without `keep`.

    Every process must call it.
    """
    parts = ((name, whole(weight, keep)) for name, weight in policy.state_dict().items())
    return {name: full.to("cpu", getattr(policy, "kept_dtype", full.dtype)) for name, full in parts if keep}
