"""`vllm serve`, the real one, on this machine's CPU, as a sampler over HTTP: adapters, whole weights, a run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace

import pytest
from servable import GREEDY, RANK, assert_agrees, logprobs, train_step
from small import RewardsFirstToken, sum_problems, tokenizer

from dphlib import model, trainer, tuning
from dphlib.config import METHOD_CONFIGS, TrainConfig
from dphlib.server_sampler import ServerSampler
from dphlib.tuning import TuningConfig

pytestmark = pytest.mark.vllm
SETTINGS = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING", "TORCHDYNAMO_DISABLE": "1",
}  # fmt: skip


@pytest.fixture(scope="module")
def address(base_folder, tmp_path_factory):
    """The address of a server of the base; it ends with the file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(base_folder), "--port", str(port), "--host",
        "127.0.0.1", "--generation-config", "vllm", "--dtype", "float32", "--max-model-len", "128", "--enforce-eager",
        "--kv-cache-memory-bytes", str(2**26), "--max-num-seqs", "64", "--block-size", "32", "--enable-lora",
        "--max-lora-rank", "8", "--max-loras", "1",
    ]  # fmt: skip
    log = tmp_path_factory.mktemp("server") / "log"
    with open(log, "wb") as output:
        server = subprocess.Popen(
            command, env=os.environ | SETTINGS, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + 180
    try:
        while True:
            assert server.poll() is None and time.monotonic() < until, log.read_text()[-4000:]
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=2):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def adapted(base_folder, seed: int = 0, steps: int = 2):
    policy = tuning.prepare(model.load(base_folder)[0], TuningConfig("lora", rank=RANK), seed)
    optimizer = tuning.optimizer(policy, 2e-2)
    for step in range(steps):
        train_step(policy, optimizer, seed + step)
    return policy


def test_the_base_and_two_adapters_in_turn(address, base_folder, tmp_path):
    problems = [replace(p, prompt=f"{p.prompt} " * 8 + "answer :") for p in sum_problems(4)]  # more than a cache block
    sampler = ServerSampler([address], tmp_path, tokenizer(), adapters=True)
    assert sampler.max_tokens == 128 and sampler.record() == {"sampler": "server vllm 0.32.0", "adapter_sha256": None}
    assert_agrees(sampler, model.load(base_folder)[0], problems)
    one, two = adapted(base_folder, 0, steps=4), adapted(base_folder, 9, steps=4)
    hashes = []
    for policy in (one, two, one):
        sampler.sync(policy)
        assert_agrees(sampler, policy, problems)
        hashes.append(sampler.record()["adapter_sha256"])
    assert hashes[0] == hashes[2] != hashes[1]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_run_trains_on_what_the_server_draws(address, base_folder, tmp_path):
    policy = tuning.prepare(model.load(base_folder)[0], TuningConfig("lora", rank=RANK))
    config = TrainConfig(
        iterations=3, prompts=4, rollouts=4, mini_batches=1, rehearsal_rows=0, lr=1e-2, max_new_tokens=8,
        importance_cap=2.0, diagnose_every=1,
    )  # fmt: skip
    arguments = (tokenizer(), sum_problems(8), [], RewardsFirstToken(), METHOD_CONFIGS["rkl"], config, 0)
    sampler = ServerSampler([address], tmp_path, tokenizer(), adapters=True)
    logs = trainer.train(policy, *arguments, sampler=sampler)
    assert len({row["adapter_sha256"] for row in logs}) == 3
    assert all(row["tis_mean"] == pytest.approx(1.0, abs=1e-3) and row["sampler_gap"] < 1e-4 for row in logs)


def test_whole_weights_are_reloaded(address, base_folder, tmp_path):
    problems = sum_problems(4)
    sampler = ServerSampler([address], tmp_path, tokenizer(), adapters=False)
    policy = tuning.prepare(model.load(base_folder)[0], TuningConfig("full"))
    sampler.sync(policy)
    assert_agrees(sampler, policy, problems)
    before = logprobs(sampler.sample(problems, GREEDY, 0))
    train_step(policy, tuning.optimizer(policy, 1e-2))
    sampler.sync(policy)
    assert logprobs(sampler.sample(problems, GREEDY, 0)) != pytest.approx(before, abs=1e-3)
    assert_agrees(sampler, policy, problems)
