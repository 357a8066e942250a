"""The script for whoever gets a GPU first, in tiny shapes on a CPU: its parts without vLLM; the others in with_vllm."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dphlib.models.load import Placement
from dphlib.runtime.files import RunError
from tools import speed

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
PLACEMENT = Placement("cpu", "float32", "sdpa")


@pytest.fixture(scope="module")
def steps():
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("benchmarks", "gpu"):
            patch.syspath_prepend(HERE / folder)
        yield importlib.import_module("gpu_steps")


@pytest.fixture(scope="module")
def script(steps):
    return importlib.import_module("first_quarter_hour")


@pytest.fixture(scope="module")
def base(steps, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    steps.make_base(folder, steps.TINY, PLACEMENT)
    return folder


@pytest.mark.parametrize("kind", ["lora", "qlora", "full"])
def test_steps_of_every_kind_with_and_without_a_reference_and_stored_answers(steps, base, kind):
    rows = steps.measure(kind, base, PLACEMENT, steps.SIZES["tiny"], 1e12, methods=("rkl", "dph_js"))
    assert [(row["kind"], row["method"]) for row in rows] == [(kind, "rkl"), (kind, "dph_js")]
    assert all(row["grad_norm"] > 0 and row["tokens_s"] > 0 and 0 < row["share"] <= row["share_run"] for row in rows)
    assert [row["rows"] for row in rows] == [4, 5] and [row["tokens"] for row in rows] == [4 * 48, 5 * 48]
    assert rows[0]["through_layers"] < rows[0]["tokens"], "prompts of several answers pass once"
    assert rows[0]["through_reference"] > 0 == rows[1]["through_reference"]


@pytest.mark.parametrize(("kind", "checkpointing"), [("lora", False), ("full", True)])
def test_the_operations_of_a_step_are_those_that_torch_counts(steps, base, monkeypatch, kind, checkpointing):
    """But for attention, which it does not count on a CPU, and the first layer's inputs, which under LoRA have no
    gradient without checkpointing: of two layers a part, of 32 none to speak of.
    """
    train, counts = steps.loop.train, []

    def counting(*arguments, **options):
        with FlopCounterMode(display=False) as counter:
            logs = train(*arguments, **options)
        counts.append(counter.get_total_flops() / len(logs))
        return logs

    monkeypatch.setattr(steps.loop, "train", counting)
    monkeypatch.setattr(steps, "pairs", lambda *_: 0.0)
    methods = ["grpo", "rkl"] if kind == "full" else ["grpo"]  # torch's counter trips over PEFT in inference mode
    size = steps.SIZES["tiny"]
    rows = steps.measure(kind, base, PLACEMENT, size, 1.0, methods=methods, checkpointing=checkpointing)
    for row, counted in zip(rows, counts, strict=True):
        assert row["share_run"] * row["step_s"] == pytest.approx(counted, rel=0.01 if kind == "full" else 0.05)


def test_pairs_of_tokens_are_counted_once_for_a_shared_prompt(steps):
    size = steps.SIZES["tiny"]  # answers of 32 tokens to prompts of 16
    apart, shared = steps.pairs(4 * 48, 4, size), steps.pairs(2 * 16 + 4 * 32, 4, size)
    assert apart == 4 * 48**2 / 2 and apart - shared == 2 * 16**2 / 2


def test_packed_answers_have_the_log_probs_of_answers_apart(script, steps, base):
    found = script.packs(script.Machine(base, steps.SIZES["tiny"], PLACEMENT))
    packed, apart = found.rows
    assert packed["tokens"] < apart["tokens"] / 2 and all(target.held for target in found.targets)
    assert float(found.notes[0].split("at most ")[1].split()[0]) < 1e-5


def test_without_a_gpu_the_script_is_one_line(script, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(script, "nvidia_driver", lambda: "570.1")
    with pytest.raises(SystemExit):
        script.main([])
    line = capsys.readouterr().err.splitlines()[-1]
    assert "shows no GPU, driver 570.1 answers; --tiny runs the same code on a CPU" in line


def test_a_part_that_fails_is_recorded_and_the_status_says_so(script, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "broken.py"
    broken.write_text("import sys\nif 'base' not in sys.argv: sys.exit('the GPU is gone')")
    monkeypatch.setattr(script, "__file__", str(broken))
    assert script.main(["--tiny", "--parts", "packs", "steps", "--out", str(tmp_path / "out.json")]) == 1
    parts = json.loads((tmp_path / "out.json").read_text())["parts"]
    assert [part["error"] for part in parts.values()] == ["the GPU is gone"] * 2
    broken.write_text("import sys\nsys.exit('no space left')")
    assert script.main(["--tiny", "--out", str(tmp_path / "none.json")]) == 1
    assert not (tmp_path / "none.json").exists() and "no space left" in capsys.readouterr().err


def test_the_page_shows_a_run_on_a_gpu_and_no_other(script, steps, base, tmp_path):
    path = tmp_path / speed.ON_GPU
    for name in (speed.RECORDED, speed.ON_GPU):
        (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / speed.RECORDED).touch()
    assert speed.page_blocks(tmp_path)["gpu"] == "No run on a GPU is recorded.\n"
    script.one_part("packs", script.Machine(base, steps.SIZES["tiny"], PLACEMENT), path)
    part = json.loads(path.read_text())
    run = {name: part.pop(name) for name in ("machine", "versions")} | {"command": "first_quarter_hour.py"}
    run |= {"driver": "580.1", "parts": {"packs": part | {"seconds": 9.0}}}
    failed = {"rows": [], "targets": [], "notes": [], "error": "out of memory", "seconds": 3.0}
    path.write_text(json.dumps(run))
    with pytest.raises(RunError, match=r"first_quarter_hour\.json: a run without a GPU"):
        speed.page_blocks(tmp_path)
    run["machine"]["gpus"], run["parts"]["steps"] = ["NVIDIA H200"], failed
    run["versions"]["vllm"] = "0.32.0"
    path.write_text(json.dumps(run))
    shown = speed.page_blocks(tmp_path)["gpu"]
    assert "NVIDIA H200" in shown and "driver 580.1" in shown and "| packed | sdpa |" in shown
    assert "| packs: tokens passed to unique ones | 0.929 | at most 1.1 | held |" in shown
    assert "### steps, 3 s\n\nFailed: out of memory" in shown
    path.write_text("{}")
    with pytest.raises(RunError, match=r"first_quarter_hour\.json: not what tests/gpu/first_quarter_hour\.py writes"):
        speed.page_blocks(tmp_path)


def test_a_method_that_does_not_fit_leaves_the_others_their_rows(steps, base, monkeypatch):
    def full(policy, lr, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 30 GiB")

    monkeypatch.setattr(steps.loop, "optimizer", full)
    rows = steps.measure("full", base, PLACEMENT, steps.SIZES["tiny"], 1e12, methods=("grpo", "rkl"))
    assert [row["error"] for row in rows] == ["CUDA out of memory. Tried to allocate 30 GiB"] * 2
