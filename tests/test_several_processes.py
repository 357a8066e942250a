"""Two processes by gloo train what one trains; one that is killed ends the run with one line, and the run goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import several_processes
import torch
from accelerate.commands.config.config_args import load_config_from_file
from dphlib.runtime.processes import ALONE, Processes
from safetensors.torch import load_file
from several_processes import CASES, trained
from small_cli import judge_first_tokens, settings

from dphlib.cli import main as cli
from dphlib.experiment.pipeline import Pipeline
from dphlib.runtime import launched
from dphlib.runtime.files import RunError, read_jsonl
from dphlib.runtime.manifests import damage, read_manifest
from dphlib.settings.variants import RunConfig
from dphlib.verify import Verifier

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATIONS = ROOT / "docs" / "accelerate"
RUN = RunConfig("dph_js_definition", "main", 0)
LONG = RunConfig("dph_js_definition", "iterations=60", 0)


def launch(*arguments: str, config: str = "cpu.yaml") -> subprocess.Popen[str]:
    """`accelerate launch` in a session of its own, so that what it leaves can be found."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGURATIONS / config)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [*command, *arguments], env={**os.environ, "PYTHONPATH": paths}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], timeout_s: float = 400) -> tuple[str, str]:
    """Output and errors of a launcher, which is ended with all that it started where it takes too long."""
    try:
        return process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def timeless(rows):
    return [{key: value for key, value in row.items() if not key.endswith(("_s", "_gib"))} for row in rows]


def assert_same_log(rows, others, tolerance=1e-4):
    assert [list(row) for row in rows] == [list(row) for row in others]
    for row, other in zip(rows, others, strict=True):
        for key, value in row.items():
            expected = pytest.approx(value, rel=tolerance, abs=tolerance) if isinstance(value, float) else value
            assert other[key] == expected, (key, value, other[key])


def assert_same_weights(weights, others, tolerance=1e-4):
    assert set(weights) == set(others)
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


# --- Training together -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What two processes made of every case."""
    folder = tmp_path_factory.mktemp("pair")
    process = launch(several_processes.__file__, str(folder))
    _, errors = finish(process)
    assert process.returncode == 0, errors[-3000:]
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_trains(pair, case):
    weights, logs = trained(case, ALONE)
    assert_same_weights(weights, load_file(pair / f"{case}.safetensors"))
    assert_same_log(logs, json.loads((pair / f"{case}.json").read_text()))
    before, _ = trained(case, ALONE, iterations=0)
    assert max((weights[name] - before[name]).abs().max() for name in weights) > 1e-3, "it has learnt something"


@pytest.mark.parametrize("case", ["grpo", "shards"])
def test_one_process_goes_on_from_the_checkpoint_of_two(pair, tmp_path, case):
    folder = Path(shutil.copytree(pair / "runs" / case, tmp_path / "run"))
    assert sorted(step.name for step in folder.glob("step-*")) == ["step-000002"]
    resumed, logs = trained(case, ALONE, folder, iterations=3)
    weights, expected = trained(case, ALONE, iterations=3)
    assert_same_weights(weights, resumed)
    assert_same_log(expected, logs)


def test_processes_that_differ_are_told(pair):
    said = {(pair / f"differ-{rank}").read_text() for rank in range(2)}
    (line,) = said
    assert "test values differ between process 0 and 1" in line


# --- The command line ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """World, base, partition and a run of one process, judged as `small_cli` does."""
    root = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Verifier, "groups", Verifier.groups)  # put back afterwards
        judge_first_tokens()
        pipeline = Pipeline(root / "smoke", settings())
        pipeline.train_one(RUN)
    return pipeline


@pytest.fixture
def untrained(built, tmp_path):
    """A copy of it without the run."""
    root = Path(shutil.copytree(built.run.root, tmp_path / "smoke"))
    for stage in (root / "stages").glob("train-*"):
        shutil.rmtree(stage)
    return root


def arguments(root: Path, run: RunConfig) -> list[str]:
    where = ["--artifacts", str(root.parent), "--profile", "smoke"]
    return ["-m", "small_cli", "train", "--method", run.method, "--variant", run.variant, *where]


def test_the_command_line_trains_by_two_processes_what_it_trains_by_one(built, untrained):
    process = launch(*arguments(untrained, RUN))
    output, errors = finish(process)
    assert process.returncode == 0, errors[-3000:]
    alone = built.train_one(RUN, look=True)
    together = Path(output.strip())
    assert together.name == alone.path.name, "one stage, whoever builds it"
    assert sorted(p.name for p in together.rglob("*")) == sorted(p.name for p in alone.path.rglob("*"))
    assert_same_weights(*(load_file(folder / "model/model.safetensors") for folder in (alone.path, together)))
    logs = [timeless(read_jsonl(folder / "train_log.jsonl")) for folder in (alone.path, together)]
    assert_same_log(*logs)
    assert logs[0][-1]["grad_norm"] > 0


def test_a_killed_process_ends_the_run_with_one_line_and_the_run_goes_on(built, untrained, monkeypatch, capsys):
    process = launch(*arguments(untrained, LONG))
    kept = untrained / "stages"
    log = None
    until = time.monotonic() + 400
    while time.monotonic() < until and process.poll() is None:
        log = next(kept.glob(".work-train-*/train_log.jsonl"), None)
        if log and len(log.read_bytes().split(b"\n")) > 4:
            break
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    ranks = {p.environ().get("RANK"): p for p in family if p.ppid() == process.pid}
    ranks["1"].kill()
    started = time.monotonic()
    _, errors = finish(process, 120)
    assert process.returncode != 0 and time.monotonic() - started < 60
    said = [line for line in errors.splitlines() if line.startswith("dph: ")]
    assert len(said) == 1, errors[-3000:]
    assert "process 1 ended" in said[0] and "run the same command again: it goes on from the last checkpoint" in said[0]
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]

    rows = len(read_jsonl(log))
    assert 4 <= rows < 60
    for step in log.parent.glob("step-*"):
        manifest, problem = read_manifest(step)
        assert not problem and not damage(step, manifest["files"])
    judge_first_tokens_here(monkeypatch)
    stage = Pipeline(untrained, settings()).train_one(LONG)
    assert re.search(r"training goes on after iteration \d+", capsys.readouterr().err)
    assert [row["iteration"] for row in read_jsonl(stage.path / "train_log.jsonl")] == list(range(1, 61))


def judge_first_tokens_here(monkeypatch):
    monkeypatch.setattr(Verifier, "groups", Verifier.groups)
    judge_first_tokens()


def test_an_error_of_every_process_is_told_once(tmp_path):
    process = launch("-m", "dphlib", "train", "--method", "ppo", "--artifacts", str(tmp_path))
    _, errors = finish(process)
    assert process.returncode != 0
    assert [line for line in errors.splitlines() if line.startswith("dph: ")] == [
        line for line in errors.splitlines() if "unknown method 'ppo'" in line
    ]
    assert errors.count("unknown method 'ppo'") == 1


# --- Without processes -----------------------------------------------------------------------------


def test_shares_hold_every_item_once_keep_keys_together_and_are_about_even():
    keys, sizes = [index % 7 for index in range(50)], [1 + index % 5 for index in range(50)]
    shares = Processes(0, 3).shares(keys, sizes)
    assert sorted(index for share in shares for index in share) == list(range(50))
    assert len({(key, rank) for rank, share in enumerate(shares) for key in (keys[i] for i in share)}) == 7
    loads = [sum(sizes[i] for i in share) for share in shares]
    assert max(loads) <= 2 * min(loads)
    assert Processes(1, 4).shares(["a"], [3]) == [[0], [], [], []]
    parts = [Processes(rank, 4).cut(10) for rank in range(4)]
    assert [part[0] for part in parts[1:]] == [part[1] for part in parts[:-1]] and parts[-1][1] == 10


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "shards by FSDP2, not by DeepSpeed"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "set fsdp_version: 2"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed_precision bf16"),
    ],
)
def test_what_the_trainer_does_not_follow_is_refused(monkeypatch, environment, says):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=says):
        launched.join()


def test_several_processes_train_only(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["evaluate", "--method", "grpo"]) == 1
    assert "several processes can train only, not evaluate" in capsys.readouterr().err


def test_without_a_launcher_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched.join() == ALONE and not launched.sharded()
    assert launched.explain(RuntimeError("Connection closed by peer")) is None


@pytest.mark.parametrize("path", sorted(CONFIGURATIONS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_every_configuration(path):
    config = load_config_from_file(str(path))
    assert config.num_processes > 1 and config.mixed_precision == ("bf16" if "deepspeed" in path.stem else "no")
    if config.fsdp_config:
        assert config.fsdp_config["fsdp_version"] == 2
    assert path.name in (ROOT / "docs" / "several_gpus.md").read_text()
