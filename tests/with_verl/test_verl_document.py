"""docs/verl.md: its program runs as written, up to verl's data set and reward; its versions are those of the lists."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
import scripted_base

from dphlib.integrations.verl.store import read_store

pytestmark = pytest.mark.verl
ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/verl.md").read_text(encoding="utf-8")
PROGRAMS = dict(re.findall(r"^<!-- file: ([^\n]+) -->\n```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))


def test_the_program_goes_from_prompts_and_reward_to_what_verl_trains_on(configure, tmp_path, monkeypatch):
    from transformers import AutoTokenizer
    from verl.trainer.ppo.reward import get_custom_reward_fn
    from verl.trainer.ppo.utils import create_rl_dataset

    monkeypatch.setattr(scripted_base, "ANSWERS", {"\\boxed{4}": 0.85, "\\boxed{5}": 0.15})
    base = scripted_base.save_base(tmp_path / "base", ["What is 1 + 2? Put the answer into a box."])
    program, store = tmp_path / "sums.py", tmp_path / "store"
    program.write_text(PROGRAMS["sums.py"], encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["sums.py", str(base), str(store)])
    runpy.run_path(str(program), run_name="__main__")

    table, head = read_store(store / "train.parquet")
    stored = {row["extra_info"]["problem_id"] for row in table.to_pylist()[head.exploration :]}
    assert stored <= {"1+3", "2+2", "3+1"} and stored, "four is what the base knows"
    config = configure(
        f"data.train_files={store}/train.parquet",
        f"actor_rollout_ref.model.path={base}",
        f"reward.custom_reward_function.path={program}",  # as in the page's command
        "data.max_prompt_length=200",
    )
    words = AutoTokenizer.from_pretrained(base)
    data = create_rl_dataset(config.data.train_files, config.data, words, None)
    assert len(data) == head.exploration // 4 * 7
    for row in (data[i] for i in range(7)):
        assert words.decode(row["extra_info"]["prompt_ids"]).startswith("<|begin|><|user|>What is")
    reward = get_custom_reward_fn(config)
    judged = {"data_source": "sums", "ground_truth": "4", "extra_info": data[0]["extra_info"]}
    assert (reward(solution_str="\\boxed{4}", **judged), reward(solution_str="\\boxed{5}", **judged)) == (1.0, 0.0)


def test_readmes_launch_has_the_settings_that_verl_accepts(launch_settings, base_folder, store, tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^```bash\n(MODEL=base STORE=store .*)\n```$", readme, re.MULTILINE)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(python), "DATABASES": "store"}
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    accepted = [
        setting.replace(str(base_folder), "base").replace(str(store), "store") for setting in launch_settings("dph_f")
    ]
    assert done.stdout.splitlines() == ["-m", "verl.trainer.main_ppo", *accepted]


def test_the_versions_are_those_of_verls_metadata_and_of_the_tests():
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]*) ?\| ([\d.]+|not tested)", PAGE, re.MULTILINE)
    assert [name for name, *_ in rows] == ["verl", "Transformers", "torch", "vLLM", "flash-attn"]
    needs, tested = requires("verl"), (ROOT / "constraints-verl.txt").read_text(encoding="utf-8")
    for name, pinned, version in rows:
        if pinned:
            assert any(re.match(rf"{name.lower()}=={pinned};? .*(vllm|flash-attn)", need) for need in needs), name
        if version != "not tested":
            assert f"\n{name.lower()}=={version}\n" in tested
