"""Checkpoints: a run that was interrupted equals one that was not, to the last bit; damage is told."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from small import RewardsFirstToken, policy, sum_problems, tokenizer, untimed
from test_trainer import CONFIG, EVERY, references, weights

from dphlib.models import tuning
from dphlib.runtime.files import RunError, read_jsonl
from dphlib.runtime.machine import seed_everything
from dphlib.settings.stages import TuningConfig
from dphlib.training import checkpoints, loop

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
KEEPING = replace(CONFIG, iterations=6, checkpoint_every=2)


class Stopped(Exception):
    pass


def run(folder, method="dph_f", stop_after=None, learner=None, config=KEEPING, seed=0):
    """A run that keeps checkpoints; with `stop_after` it dies in that iteration, after its update."""
    learner = learner or policy()

    def on_iteration(row):
        random.random(), numpy.random.rand(), torch.rand(1)  # somebody else draws too
        if row["iteration"] == stop_after:
            raise Stopped

    arguments = (learner, tokenizer(), sum_problems(8), references(), RewardsFirstToken(), EVERY[method], config, seed)
    options = {"base": policy().requires_grad_(False), "folder": folder, "on_iteration": on_iteration}
    if stop_after is None:
        return learner, loop.train(*arguments, **options)
    with pytest.raises(Stopped):
        loop.train(*arguments, **options)
    return learner, []


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Policy and log of a run that nothing stopped."""
    return run(tmp_path_factory.mktemp("uninterrupted"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """What a run leaves that died in iteration 5, after the checkpoints 2 and 4."""
    folder = tmp_path_factory.mktemp("stopped")
    run(folder, stop_after=5)
    return folder


@pytest.fixture
def cut(stopped, tmp_path):
    return Path(shutil.copytree(stopped, tmp_path / "cut"))


WHOLE, LORA = TuningConfig(), TuningConfig("lora", rank=2, alpha=4, dropout=0.2)


@pytest.mark.parametrize(
    ("method", "stop_after", "kind", "dtype"),
    [
        ("dph_f", 3, WHOLE, torch.float32),
        ("dapo", 5, WHOLE, torch.float32),
        ("dph_js_definition", 5, WHOLE, torch.float32),
        ("dph_f", 3, LORA, torch.float32),
        ("dph_f", 3, WHOLE, torch.bfloat16),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bitwise(tmp_path, method, stop_after, kind, dtype):
    def begun(seed):
        seed_everything(seed)
        return tuning.prepare(policy().to(dtype), kind)

    whole, logs = run(tmp_path / "whole", method, learner=begun(0))
    left = torch.rand(1), random.random(), numpy.random.rand()
    run(tmp_path / "cut", method, stop_after, begun(0))
    resumed, resumed_logs = run(tmp_path / "cut", method, learner=begun(99))  # a new process
    assert torch.equal(weights(resumed), weights(whole))
    assert untimed(resumed_logs) == untimed(logs)
    assert untimed(read_jsonl(tmp_path / "cut" / checkpoints.LOG)) == untimed(logs)
    assert (torch.rand(1), random.random(), numpy.random.rand()) == left
    held = sum(file.stat().st_size for file in (tmp_path / "whole" / "step-000006").glob("weights.*"))
    trained = sum(p.numel() * p.element_size() for p in whole.parameters() if p.requires_grad)
    assert trained <= held < trained + 20_000, "frozen weights are not kept"


def test_a_finished_run_is_not_trained_again_and_a_longer_one_goes_on(tmp_path):
    done, logs = run(tmp_path)
    again, again_logs = run(tmp_path)
    assert torch.equal(weights(again), weights(done)) and untimed(again_logs) == untimed(logs)
    with pytest.raises(RunError, match="holds a run of 6 iterations, 4 are asked for"):
        run(tmp_path, config=replace(KEEPING, iterations=4))
    longer, longer_logs = run(tmp_path, config=replace(KEEPING, iterations=8))
    fresh, fresh_logs = run(tmp_path / "fresh", config=replace(KEEPING, iterations=8))
    assert torch.equal(weights(longer), weights(fresh)) and untimed(longer_logs) == untimed(fresh_logs)


def test_two_checkpoints_are_kept_and_nothing_else(tmp_path):
    run(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000004", "step-000006", checkpoints.LOG]
    names = sorted(p.name for p in (tmp_path / "step-000006").iterdir())
    assert names == ["manifest.json", "state.json", "state.safetensors", "weights.safetensors"]


FILES = ("weights.safetensors", "state.safetensors", "state.json", "manifest.json")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", ["cut", "gone", "flipped"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_used(uninterrupted, cut, capsys, file, harm):
    path = cut / "step-000004" / file
    data = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        middle = len(data) // 2
        path.write_bytes(data[:middle] + (b"" if harm == "cut" else bytes([data[middle] ^ 1]) + data[middle + 1 :]))
    resumed, _ = run(cut)
    assert torch.equal(weights(resumed), weights(uninterrupted[0]))
    told = capsys.readouterr().err
    assert "step-000004 is damaged: " in told and file in told and "the checkpoint before it is used" in told
    assert "goes on after iteration 2" in told


def test_without_a_whole_checkpoint_there_is_one_error_that_says_what_to_do(cut):
    for file in cut.glob("step-*/weights.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunError, match=r"no whole one is left: remove .* to train from the start"):
        run(cut)


def test_a_torn_line_and_rows_after_the_checkpoint_are_cut_off(uninterrupted, cut):
    log = cut / checkpoints.LOG
    assert len(read_jsonl(log)) == 5
    log.write_bytes(log.read_bytes()[:-30])
    resumed, _ = run(cut)
    assert torch.equal(weights(resumed), weights(uninterrupted[0]))
    assert untimed(read_jsonl(log)) == untimed(uninterrupted[1])


def test_a_log_that_lost_rows_is_noticed(cut):
    log = cut / checkpoints.LOG
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[1:]))
    with pytest.raises(RunError, match="3 whole rows of the 4 before the checkpoint"):
        run(cut)


def test_a_checkpoint_of_another_run_is_refused_by_what_differs(cut):
    with pytest.raises(RunError, match=r"another run \(train differ\)"):
        run(cut, config=replace(KEEPING, lr=1e-5))
    with pytest.raises(RunError, match=r"\(method, seed differ\)"):
        run(cut, "dph_js", seed=1)
    run(cut, config=replace(KEEPING, token_budget=64, diagnose_every=0))  # memory and diagnosis may change


@pytest.mark.parametrize(
    ("learner", "says"), [((1, 2), r"\(base differ\)"), ((0, 4), "other weights than this policy trains")]
)
def test_an_adapter_is_not_resumed_on_another_base_or_with_another_shape(tmp_path, learner, says):
    def adapted(seed, rank):
        return tuning.prepare(policy(seed), TuningConfig("lora", rank=rank))

    run(tmp_path, stop_after=3, learner=adapted(0, 2))
    with pytest.raises(RunError, match=says):
        run(tmp_path, learner=adapted(*learner))


def test_a_full_disk_leaves_the_checkpoints_that_were_there(uninterrupted, cut, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(RunError, match="free space"):
        run(cut)
    monkeypatch.undo()
    assert sorted(p.name for p in cut.glob("*step-*")) == ["step-000002", "step-000004"]
    resumed, _ = run(cut)
    assert torch.equal(weights(resumed), weights(uninterrupted[0]))


def test_a_killed_process_leaves_a_run_that_can_go_on(uninterrupted, tmp_path):
    """SIGKILL in the middle of writing the second checkpoint."""
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from dphlib.training import checkpoints
from test_checkpoints import run
from pathlib import Path
save, calls = checkpoints.save_file, []
def killed(tensors, path):
    save(tensors, path)
    calls.append(path)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoints.save_file = killed
run(Path({str(tmp_path / "cut")!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, env=os.environ)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    assert list((tmp_path / "cut").glob(".tmp-*"))
    resumed, _ = run(tmp_path / "cut")
    assert torch.equal(weights(resumed), weights(uninterrupted[0]))
    assert not list((tmp_path / "cut").glob(".tmp-*"))
