"""A checkpoint of two processes: verl's engine writes it, the document's line merges it, and it becomes a run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import policy, tokenizer

from dphlib.integrations.verl.weights import bring, find_weights
from dphlib.models.load import load_model
from dphlib.runtime.files import RunError
from dphlib.settings.profiles import profile

pytestmark = pytest.mark.verl
PROCESSES = 2


def merge(actor: Path, merged: Path) -> subprocess.CompletedProcess[str]:
    """Runs the line of docs/verl.md."""
    page = (Path(__file__).resolve().parents[2] / "docs/verl.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^python (-m verl\.model_merger .*)$", page, re.MULTILINE)
    named = {"CHECKPOINT/actor": str(actor), "MERGED": str(merged)}
    return subprocess.run(
        [sys.executable, *(named.get(word, word) for word in line.split())], capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Weights that are not the base's, whole, in fp32."""
    folder = tmp_path_factory.mktemp("trained")
    policy(seed=1).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def actor(trained, launch_settings, tmp_path_factory) -> Path:
    """What verl's FSDP2 engine writes of these weights in two processes."""
    out = tmp_path_factory.mktemp("checkpoints") / "global_step_1/actor"
    environment = {
        **os.environ,
        "VERL_USE_EXTERNAL_MODULES": "cpu_platform",
        "VERL_PLATFORM": "cpu",
        "VERL_ENGINE_DEVICE": "cuda",  # as in the dry run
        "OMP_NUM_THREADS": "1",
    }
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    script = str(Path(__file__).with_name("sharded.py"))
    settings = [*launch_settings(), f"actor_rollout_ref.model.path={trained}"]
    done = subprocess.run([*launch, script, str(out), *settings], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return out


def test_two_parts_are_merged_into_the_whole_weights_and_become_a_run(actor, trained, base_folder, tmp_path):
    parts = [torch.load(actor / f"model_world_size_2_rank_{rank}.pt", weights_only=False) for rank in (0, 1)]
    whole = load_model(trained)[0].state_dict()
    name = "model.embed_tokens.weight"
    rows = [len(part[name].to_local()) for part in parts]
    assert all(rows) and sum(rows) == len(whole[name]), "each process wrote its own rows alone"
    with pytest.raises(RunError, match=r"in 2 part\(s\), not merged"):
        find_weights(actor)
    done = merge(actor, tmp_path / "merged")
    assert done.returncode == 0, done.stderr

    bring(tmp_path / "stage", find_weights(tmp_path / "merged"), base_folder, profile("cpu"), None)
    found = load_file(tmp_path / "stage/model/model.safetensors")
    assert found.keys() == whole.keys() - {"lm_head.weight"}, "which is tied"
    for name, weight in found.items():
        assert torch.equal(weight, whole[name].bfloat16()), name
    brought, _ = load_model(tmp_path / "stage/model")
    assert brought.lm_head.weight is brought.get_input_embeddings().weight


@pytest.mark.parametrize("rank", range(PROCESSES))
def test_a_part_that_is_missing_is_named(actor, tmp_path, rank):
    torn = shutil.copytree(actor, tmp_path / "actor")
    (missing := torn / f"model_world_size_2_rank_{rank}.pt").unlink()
    with pytest.raises(RunError, match=f"1 of the 2 parts of a checkpoint of verl, without rank {rank}: ") as error:
        find_weights(torn)
    assert "\n" not in str(error.value)
    done = merge(torn, tmp_path / "merged")
    assert done.returncode != 0 and str(missing) in done.stderr.splitlines()[-1]
    with pytest.raises(FileNotFoundError, match="no weights in"):
        find_weights(tmp_path / "merged")
