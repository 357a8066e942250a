"""A dry run of the script for whoever gets a GPU first: its parts with the real vLLM, in tiny shapes on this CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_the_stages_twice_in_one_process_and_weights_handed_over_three_times(repository, tmp_path, monkeypatch):
    for folder in ("benchmarks", "gpu"):
        monkeypatch.syspath_prepend(repository / "tests" / folder)
    import first_quarter_hour as script

    def in_this_process(call, **_):  # which has loaded vLLM; of processes of their own see test_gpu_script.py
        assert call[:2] == [sys.executable, script.__file__]
        return SimpleNamespace(returncode=script.main(call[2:]))

    monkeypatch.setattr(script, "subprocess", SimpleNamespace(run=in_this_process, STDOUT=subprocess.STDOUT))
    out = tmp_path / "found.json"
    assert script.main(["--tiny", "--parts", "smoke", "syncs", "--out", str(out)]) == 0
    parts = json.loads(out.read_text())["parts"]
    assert all(target["held"] for part in parts.values() for target in part["targets"])
    rows = parts["smoke"]["rows"]
    stages = ["presample", "train", "evaluate"]
    assert [(row["round"], row["stage"]) for row in rows] == [(n, stage) for n in (1, 2) for stage in stages]
    assert {row["modules"] for row in rows} == {0} and rows[5]["used_gib"] == rows[2]["used_gib"]
    first, second = rows[1], rows[4]
    assert first["grad_norm"] > 0 and first["sampler_gap"] < 1e-4
    assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-3)
    handed = parts["syncs"]["rows"]
    assert [(row["kind"], row["change"]) for row in handed] == [(k, n) for k in ("lora", "full") for n in range(4)]
    assert all(row["gap"] < 1e-5 and row["greedy"] == 1.0 for row in handed)
    assert all(row["moved"] > 0.1 for row in handed if row["change"])
    assert all("the same greedy answers twice: yes" in note for note in parts["syncs"]["notes"])
