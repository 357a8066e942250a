"""DPH-RL in TRL with TRL's own colocated vLLM, the real one: rollouts come from the weights of each step.

Not here, as vLLM on a CPU has none of it: sleep, 4-bit weights, TRL's server mode (it sends weights by NCCL).
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from peft import LoraConfig
from servable import OPTIONS
from small_trl import TEMPLATED, dph, export_store, rehearsed, unlike_export

from dphlib.integrations import store

pytestmark = pytest.mark.vllm


@pytest.fixture
def colocated(monkeypatch):
    """TRL's engine as a CPU needs it, by settings that TRL has no argument for.

    vLLM packs weights for a CPU at its start and drops the ones that TRL writes to later; on a GPU it keeps them.
    """
    from trl.generation import vllm_generation
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.model_executor.layers import utils

    def unpacked(layer, remove_weight):
        layer.cpu_linear = torch.nn.functional.linear

    options = {name: value for name, value in OPTIONS.items() if name != "max_num_seqs"}  # TRL gives its own
    monkeypatch.setattr(vllm_generation, "LLM", partial(vllm_generation.LLM, dtype="float32", **options))
    monkeypatch.setattr(utils, "dispatch_cpu_unquantized_gemm", unpacked)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)  # TRL sets them; they go with the test
    yield vllm_generation.VLLMGeneration
    cleanup_dist_env_and_memory()


@pytest.fixture(scope="module")
def held(base_folder, tmp_path_factory) -> store.Store:
    return store.read(export_store(tmp_path_factory.mktemp("store"), base_folder, TEMPLATED))


def odd_lengths(completions, **_):
    """Rewards that differ within a group, so that the rollouts move the policy too."""
    return [float(len(text) % 2) for text in completions]


def trained(base_folder, folder, held, adapter):
    """Two steps, and what TRL logs as the distance of vLLM's log-probabilities to the trainer's own in each."""
    trainer = dph(
        str(base_folder),
        folder,
        held,
        rewards=odd_lengths,
        arguments={"peft_config": adapter, "processing_class": unlike_export(base_folder)},
        rehearsal_rows=6,
        num_generations=4,
        use_vllm=True,
        vllm_mode="colocate",
        vllm_max_model_length=128,
    )
    trainer.train()
    rows = [row for row in trainer.state.log_history if "grad_norm" in row]
    return trainer, [row["sampling/sampling_logp_difference/max"] for row in rows]


@pytest.mark.parametrize("adapter", [LoraConfig(r=4, target_modules="all-linear"), None], ids=["lora", "full"])
def test_rollouts_come_from_the_weights_of_the_step_before_and_continue_the_exported_ids(
    colocated, base_folder, held, tmp_path, monkeypatch, adapter
):
    generate, read = colocated.generate, []

    def reading(engine, prompts, **options):
        read.extend(map(tuple, prompts))
        return generate(engine, prompts=prompts, **options)

    monkeypatch.setattr(colocated, "generate", reading)
    trainer, apart = trained(base_folder, tmp_path, held, adapter)
    assert len(read) == 8 and set(read) <= set(held.exploration_ids)
    assert not set(read) & {tuple(trainer.processing_class(p.prompt)["input_ids"]) for p in held.exploration}
    assert len(apart) == 2 and max(apart) < 1e-4
    first, second = rehearsed(trainer)
    assert first < 1e-9 < second, "the stored answers are at the base, and the first step leaves it"


def test_an_engine_that_keeps_its_first_weights_would_show(colocated, base_folder, held, tmp_path, monkeypatch):
    monkeypatch.setattr(colocated, "sync_weights", lambda self: None)
    _, (first, second) = trained(base_folder, tmp_path, held, LoraConfig(r=4, target_modules="all-linear"))
    assert first < 1e-4 and second > 1e-3
