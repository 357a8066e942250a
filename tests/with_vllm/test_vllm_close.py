"""Engines of vLLM that live one after the other in a process: an ended one leaves nothing behind."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from servable import GREEDY, OPTIONS, RANK, assert_agrees
from small import sum_problems, tokenizer

from dphlib.models import tuning
from dphlib.models.load import load_model
from dphlib.models.tuning import TuningConfig
from dphlib.sampling.vllm import VllmSampler

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore::FutureWarning")]  # gc meets torch's old names


def of_vllm() -> list[str]:
    """The kinds of vLLM's modules that are alive."""
    gc.collect()
    modules = (one for one in gc.get_objects() if isinstance(one, torch.nn.Module))
    return [type(one).__name__ for one in modules if type(one).__module__.startswith("vllm")]


def tensor_bytes() -> int:
    """Memory of all storages of tensors that are alive."""
    gc.collect()
    tensors = (one for one in gc.get_objects() if isinstance(one, torch.Tensor))
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def test_three_engines_leave_no_module_and_no_tensor(base_folder):
    """Full weights are pushed into the first and the last, an adapter is given to the second; all of them draw."""
    whole = tuning.prepare(load_model(base_folder)[0], TuningConfig("full"))
    adapted = tuning.prepare(load_model(base_folder)[0], TuningConfig("lora", rank=RANK))
    problems, layers, held = sum_problems(3), [], []
    for policy, rank in ((whole, None), (adapted, RANK), (whole, None)):
        shared = {"max_tokens": 128, "dtype": "float32", "engine_options": OPTIONS}
        sampler = VllmSampler(base_folder, tokenizer(), lora_rank=rank, **shared)
        sampler.engine.apply_model(lambda model: layers.append([weakref.ref(layer) for layer in model.modules()]))
        for _ in range(2):
            sampler.sync(policy)
            sampler.sample(problems, GREEDY, 0)
        assert_agrees(sampler, policy, problems)
        assert all(layer() is not None for layer in layers[-1]) and len(layers[-1]) > 15
        sampler.close()
        del sampler
        held.append(tensor_bytes())
        assert of_vllm() == []
    assert [layer for of_one in layers for layer in of_one if layer() is not None] == []
    assert held[1:] == held[:1] * 2, "what the first one leaves is of this process, and no engine adds to it"
