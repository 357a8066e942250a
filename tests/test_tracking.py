"""The log goes to a tracker of Accelerate's as well, number by number."""

from __future__ import annotations

import accelerate.tracking
import pytest
from accelerate.tracking import GeneralTracker
from small import RewardsFirstToken, small_profile

from dphlib.cli import main as cli
from dphlib.experiment.pipeline import Pipeline
from dphlib.runtime.files import read_jsonl
from dphlib.settings.variants import RunConfig
from dphlib.training import tracking
from dphlib.verify import Verifier

pytestmark = pytest.mark.slow

RUN = RunConfig("grpo", "main", 0)


class Notes(GeneralTracker):
    """A tracker that keeps what it is told."""

    name, requires_logging_directory, kept = "notes", True, []

    def __init__(self, run_name, logging_dir):
        super().__init__()
        self.run_name, self.folder = run_name, logging_dir

    @property
    def tracker(self):
        return None

    def store_init_configuration(self, values):
        self.kept.append(("begin", self.run_name, values))

    def log(self, values, step=None):
        self.kept.append((step, values))

    def finish(self):
        self.kept.append("end")


@pytest.fixture
def notes(monkeypatch):
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "notes", Notes)
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: ["notes"])
    monkeypatch.setattr(Notes, "kept", [])
    return Notes.kept


def test_a_run_sends_every_row_of_its_log_and_gives_the_same_policy(tmp_path, notes, monkeypatch):
    monkeypatch.setattr(Verifier, "groups", RewardsFirstToken.groups)  # random weights solve nothing
    stage = Pipeline(tmp_path, small_profile(), tracker="notes").train_one(RUN)
    identity = {"profile": "smoke", "method": "grpo", "variant": "main", "seed": 0}
    assert notes[0] == ("begin", f"smoke-{RUN.name}", identity) and notes[-1] == "end"
    rows = read_jsonl(stage.path / "train_log.jsonl")
    assert [step for step, _ in notes[1:-1]] == [row["iteration"] for row in rows] == [1, 2]
    for (_, sent), row in zip(notes[1:-1], rows, strict=True):
        assert sent["train/loss"] == row["loss"] and sent["train/grad_norm"] == row["grad_norm"]
        assert "train/sampler" not in sent
    assert Pipeline(tmp_path, small_profile()).train_one(RUN).reused, "a tracker changes no result"


def test_a_tracker_that_is_not_there_is_told_before_training(tmp_path, capsys, monkeypatch):
    for name, says in (("paper", "unknown tracker 'paper'; known: aim"), ("wandb", "pip install wandb")):
        monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: [])
        assert cli.main(["train", "--method", "grpo", "--tracker", name, "--artifacts", str(tmp_path)]) == 1
        assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with tracking.tracked("", tmp_path, small_profile(), RUN) as track:
        track({"iteration": 1})
