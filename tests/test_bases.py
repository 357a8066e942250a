"""Bases that are shipped, and crossed seeds: which base and which pre-sampling a run's seed gives it."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from small import small_profile

from dphlib.cli import main as cli
from dphlib.cli import run as run_command
from dphlib.cli import verl
from dphlib.experiment import bases
from dphlib.experiment import pipeline as pipeline_module
from dphlib.experiment.pipeline import Pipeline
from dphlib.experiment.results import collect, figure
from dphlib.experiment.store import code_version
from dphlib.runtime.files import InputError, RunError, sha256_file
from dphlib.settings.environment import RETRAIN, ask_to_retrain, chosen_by_environment
from dphlib.settings.profiles import PROFILES, profile
from dphlib.settings.variants import RunConfig
from dphlib.training import sft

pytestmark = pytest.mark.slow

WEIGHTS = bases.WEIGHTS


def two_bases(folder: Path | str = "", **changes: object):
    return small_profile(bases=2, shipped=str(folder), **changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "bases"
    settings = two_bases(folder)
    bases.make(replace(settings, sft=replace(settings.sft, steps=30)), folder)
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bases"))


@pytest.fixture
def settings(folder):
    settings = two_bases(folder)
    return replace(settings, sft=replace(settings.sft, steps=30))


def weights(stage) -> bytes:
    return (stage.path / WEIGHTS).read_bytes()


# --- Shipped bases ----------------------------------------------------------------------------------


def test_a_folder_of_bases_has_each_ones_weights_once_what_they_share_and_what_made_them(folder, settings):
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    shared = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert names == {"bases.json", f"0/{WEIGHTS}", f"1/{WEIGHTS}", *shared}
    listed = json.loads((folder / "bases.json").read_text())
    assert set(listed["shared"]) == shared and set(listed["bases"]) == {"0", "1"}
    for name, entry in listed["bases"].items():
        assert entry["recipe"] == bases.recipe(settings, int(name))
        assert entry["files"][f"{name}/{WEIGHTS}"]["sha256"] == sha256_file(folder / name / WEIGHTS)
        assert entry["code"] == code_version(["training.sft", "models.load"]) and entry["versions"]["torch"]
        assert len(entry["log"]["loss"]) == 2 and entry["log"]["every"] == 25  # of 30 steps
    assert (folder / "0" / WEIGHTS).read_bytes() != (folder / "1" / WEIGHTS).read_bytes()


def test_a_shipped_base_is_copied_and_is_the_one_that_training_makes(settings, tmp_path, monkeypatch):
    trained = Pipeline(tmp_path / "trained", replace(settings, shipped=""))
    by_training = [trained.base(index) for index in (0, 1)]
    monkeypatch.setattr(sft, "build", None)  # nothing may be trained
    pipeline = Pipeline(tmp_path / "copied", settings)
    for index, stage in enumerate(by_training):
        copied = pipeline.base(index)
        assert weights(copied) == weights(stage) and copied.key != stage.key
        assert {path.name for path in copied.path.iterdir()} == {path.name for path in stage.path.iterdir()}
        log, whole = (json.loads((one.path / bases.LOG).read_text()) for one in (copied, stage))
        assert log["loss"] == [
            pytest.approx(sum(part) / len(part), abs=1e-4) for part in (whole["loss"][:25], whole["loss"][25:])
        ]
        assert log["parameters"] == whole["parameters"]
    assert Pipeline(tmp_path / "copied", settings).base(1).reused


@pytest.mark.parametrize("name", [f"1/{WEIGHTS}", "tokenizer.json"])
def test_a_file_with_other_bytes_is_refused_by_name_with_the_way_out(folder, settings, tmp_path, name):
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(RunError) as refused:
        Pipeline(tmp_path / "run", settings).base(1)
    line = str(refused.value)
    assert line.startswith(f"{folder}/{name} has other bytes") and "--retrain-base" in line and "\n" not in line
    (folder / name).unlink()
    with pytest.raises(RunError, match=f"{name} is missing; restore it"):
        Pipeline(tmp_path / "run", settings).base(1)


def test_damage_to_one_base_does_not_touch_another_or_one_that_was_copied(folder, settings, tmp_path):
    pipeline = Pipeline(tmp_path / "run", settings)
    pipeline.base(1)
    (folder / "1" / WEIGHTS).unlink()
    assert Pipeline(tmp_path / "run", settings).base(1).reused
    assert not Pipeline(tmp_path / "run", settings).base(0).reused


@pytest.mark.parametrize(
    ("part", "change"),
    [("world", {"misread_rate": 0.5}), ("world", {"seed": 1}), ("model", {"layers": 1}), ("sft", {"steps": 31})],
)
def test_bases_of_another_world_model_or_fine_tuning_are_refused(folder, settings, tmp_path, part, change):
    other = replace(settings, **{part: replace(getattr(settings, part), **change)})
    with pytest.raises(RunError) as refused:
        Pipeline(tmp_path / "run", other).base(1)
    line = str(refused.value)
    assert line.startswith(f"{folder}/bases.json: base 1 was made from another world") and "\n" not in line
    assert "--retrain-base" in line and f"{RETRAIN}=1" in line


def test_bases_of_a_world_whose_code_changed_are_refused(settings, tmp_path, monkeypatch):
    corpus = bases.corpus
    monkeypatch.setattr(bases, "corpus", lambda *given: ((prompt, f"{answer} .") for prompt, answer in corpus(*given)))
    with pytest.raises(RunError, match="base 0 was made from another world"):
        Pipeline(tmp_path / "run", settings).base(0)


def test_a_list_that_is_cut_is_refused(folder, settings, tmp_path):
    (folder / "bases.json").write_text((folder / "bases.json").read_text()[:-40])
    with pytest.raises(RunError, match=r"bases.json cannot be read .*--retrain-base"):
        Pipeline(tmp_path / "run", settings).base(0)


def test_a_base_beyond_those_that_are_shipped_is_trained_and_said(folder, settings, tmp_path, capsys):
    pipeline = Pipeline(tmp_path / "run", replace(settings, bases=3))
    assert weights(pipeline.base(2)) not in {weights(pipeline.base(index)) for index in (0, 1)}
    assert f"base 2: none is shipped in {folder}; it is trained here" in capsys.readouterr().err


def test_without_the_folder_bases_are_trained(settings, tmp_path, capsys):
    pipeline = Pipeline(tmp_path / "run", replace(settings, shipped=str(tmp_path / "nowhere")))
    assert (pipeline.base(1).path / WEIGHTS).is_file()
    assert "base 1: none is shipped in" in capsys.readouterr().err


# --- Making them --------------------------------------------------------------------------------------


def counted(monkeypatch) -> list[int]:
    trained, build = [], sft.build

    def count(out, world, size, config, on_step):
        trained.append(config.seed)
        build(out, world, size, config, on_step)

    monkeypatch.setattr(sft, "build", count)
    return trained


def test_bases_that_are_there_are_kept_and_damaged_or_other_ones_made_anew(folder, settings, monkeypatch, capsys):
    trained = counted(monkeypatch)
    bases.make(settings, folder)
    assert trained == [] and "base 1: kept" in capsys.readouterr().err
    before = (folder / "bases.json").read_text()
    (folder / "1" / WEIGHTS).write_bytes(b"cut")
    bases.make(settings, folder)
    assert trained == [1] and (folder / "bases.json").read_text() == before
    bases.make(replace(settings, world=replace(settings.world, seed=1)), folder)
    assert trained == [1, 0, 1] and (folder / "bases.json").read_text() != before


def test_an_interrupted_making_goes_on(settings, tmp_path, monkeypatch):
    build, out = sft.build, tmp_path / "out"

    def stops(made, world, size, config, on_step):
        build(made, world, size, config, on_step)
        if config.seed == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(sft, "build", stops)
    with pytest.raises(KeyboardInterrupt):
        bases.make(settings, out)
    monkeypatch.undo()
    assert list(json.loads((out / "bases.json").read_text())["bases"]) == ["0"]
    assert not (out / "1").exists() and not list(out.glob(".building-*"))
    (out / ".building-dead").mkdir()  # of a maker that was killed
    trained = counted(monkeypatch)
    bases.make(settings, out)
    assert trained == [1] and not list(out.glob(".building-*"))
    assert Pipeline(tmp_path / "run", replace(settings, shipped=str(out))).shipped(1) is not None


# --- Retraining -----------------------------------------------------------------------------------


def test_the_environment_asks_for_retraining(monkeypatch):
    cpu = profile("cpu")
    assert cpu.shipped and chosen_by_environment(cpu, {}) == chosen_by_environment(cpu, {RETRAIN: "0"}) == cpu
    assert chosen_by_environment(cpu, {RETRAIN: "1"}) == replace(cpu, shipped="")
    with pytest.raises(InputError, match=f"{RETRAIN}='yes'; known: 0, 1"):
        chosen_by_environment(cpu, {RETRAIN: "yes"})
    monkeypatch.setenv(RETRAIN, "0")
    ask_to_retrain(False)
    assert os.environ[RETRAIN] == "0"


@pytest.mark.parametrize(
    "command",
    [
        ["run"],
        ["presample"],
        ["partition"],
        ["train", "--method", "grpo"],
        ["evaluate", "--method", "grpo"],
        ["ablate", "--study", "eta"],
        ["verl", "--out", "nowhere"],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("asked", [True, False])
def test_every_command_that_needs_a_base_can_retrain_it(command, asked, monkeypatch, capsys):
    def stops(*_):
        raise InputError(f"{RETRAIN}={os.environ.get(RETRAIN)}")

    for module in (cli, run_command, verl):
        monkeypatch.setattr(module, "profile_from_environment", stops)
    monkeypatch.setenv(RETRAIN, "")  # so that what the command sets is undone
    assert cli.main([*command, *["--retrain-base"] * asked]) == 1
    assert capsys.readouterr().err == f"dph: {RETRAIN}={'1' * asked}\n"


def test_a_run_says_what_is_wrong_with_a_base_before_its_first_notebook(
    folder, settings, tmp_path, monkeypatch, capsys
):
    (folder / "1" / WEIGHTS).unlink()
    monkeypatch.setattr(run_command, "run_notebooks", None)
    monkeypatch.setattr(run_command, "profile_from_environment", lambda *_: replace(settings, seeds=(0, 3)))
    assert cli.main(["run", "--profile", "smoke", "--artifacts", str(tmp_path / "runs")]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dph: ")]
    assert f"{folder}/1/{WEIGHTS} is missing" in line


def test_notebooks_run_again_where_the_shipped_bases_are_others(folder, settings):
    before = run_command._outside(settings)
    assert before != run_command._outside(replace(settings, shipped=""))
    (folder / "bases.json").write_text(json.dumps({"bases": {}, "shared": {}}))
    assert run_command._outside(settings) != before


# --- Crossed seeds ----------------------------------------------------------------------------------


def test_each_profiles_bases_and_draws():
    assert {name for name in PROFILES if profile(name).bases > 1} == {"cpu"} and profile("cpu").bases == 6
    assert {name for name in PROFILES if profile(name).draws_per_seed} == {"cpu", "smoke"}
    assert {name for name in PROFILES if profile(name).shipped} == {"cpu"}


@pytest.fixture(scope="module")
def crossed(tmp_path_factory) -> Pipeline:
    return Pipeline(tmp_path_factory.mktemp("crossed"), two_bases())


def inputs(pipeline: Pipeline, run: RunConfig) -> dict[str, str]:
    """The stages that a run's training reads, with their content; nothing is trained."""
    stage = pipeline.train_one(run, bring=lambda out: (out / "brought").touch())
    return dict(json.loads((stage.path / "manifest.json").read_text())["inputs"])


def test_seeds_apart_by_the_number_of_bases_share_the_base_and_not_the_draw(crossed):
    near, far, other = (inputs(crossed, RunConfig("dph_f", "main", seed)) for seed in (0, 2, 1))
    assert set(near) == {"world", "base-0", "partition-train-seed0"} and set(far) == {
        "world",
        "base-0",
        "partition-train-seed2",
    }
    assert near["base-0"] == far["base-0"]
    assert set(other) == {"world", "base-1", "partition-train-seed1"} and other["base-1"] != near["base-0"]
    drawn = [[a.text for g in crossed.groups(seed=seed) for a in g.answers] for seed in (0, 2)]
    assert drawn[0] != drawn[1]
    content = json.loads((crossed.presample(seed=2).path / "manifest.json").read_text())["inputs"]
    assert ["base-0", far["base-0"]] in content


def test_all_arms_of_a_seed_share_base_draw_and_partition(crossed):
    arms = [("grpo", "main"), ("dph_f", "main"), ("dph_js", "eta=0.1"), ("rkl", "main")]
    assert len({frozenset(inputs(crossed, RunConfig(*arm, 3)).items()) for arm in arms}) == 1


def test_where_all_seeds_share_one_draw_they_do(crossed):
    shared = Pipeline(crossed.run.root, replace(crossed.settings, draws_per_seed=False))
    stages = [shared.presample(seed=seed) for seed in (0, 2)]
    assert stages[0].path == stages[1].path != shared.presample(seed=1).path  # of the other base


def test_each_base_that_seeds_use_is_evaluated_once_under_its_index(crossed, monkeypatch):
    frames = [pd.read_parquet(crossed.evaluate_one(index).path / "records.parquet") for index in (0, 1)]
    assert [set(frame["seed"]) for frame in frames] == [{0}, {1}]
    assert all(set(frame["method"]) == {"base"} and set(frame["step"]) == {0} for frame in frames)
    for seeds, expected in (((0, 2, 4), {0}), ((2, 5), {0, 1})):
        pipeline = Pipeline(crossed.run.root, replace(crossed.settings, seeds=seeds))
        assert set(pipeline.evaluate([])["seed"]) == expected


@pytest.fixture
def here(monkeypatch) -> list[str]:
    """Jobs run in this process, from their JSON, with the small profile; their names."""
    ran = []

    def run_jobs(jobs, **_):
        for job in jobs:
            ran.append(job.name)
            job.function(**json.loads(json.dumps(dict(job.arguments))))

    monkeypatch.setattr(pipeline_module, "run_jobs", run_jobs)
    monkeypatch.setattr(pipeline_module, "profile_from_environment", lambda name: two_bases())
    return ran


def test_pre_samplings_and_bases_are_made_side_by_side_each_once(crossed, tmp_path, here):
    pipeline, config = Pipeline(tmp_path, crossed.settings), crossed.settings.presample
    pipeline.presample_all([("train", replace(config, threshold=t), seed) for t in (1, 2) for seed in (0, 1)])
    assert here == ["train-k8-seed0", "train-k8-seed1"]
    for seed in (0, 1):
        found = pipeline.looking().presample(seed=seed)
        assert found.content_hash == crossed.presample(seed=seed).content_hash
    records = Pipeline(tmp_path, replace(crossed.settings, seeds=(0, 1))).evaluate([])
    assert here[2:] == ["base-0", "base-1"] and set(records["seed"]) == {0, 1}
    pipeline.presample_all([("train", config, seed) for seed in (0, 1)])
    assert len(here) == 4, "what is there is not made again"


def test_results_hold_each_base_with_the_pre_samples_of_its_first_seed(crossed, here):
    settings = replace(crossed.settings, seeds=(3, 2, 1))
    results = collect(Pipeline(crossed.run.root, settings), [])
    assert results.bases == [0, 1]
    for index, seed in ((0, 2), (1, 3)):
        records, presample = results.of_base(index)
        assert set(records["seed"]) == {index} and len(records) == len(results.records) / 2
        for suite in ("train", "sums_train"):
            correct = presample.loc[presample["suite"] == suite].set_index("problem_id")["correct"].to_dict()
            assert correct == {group.problem.id: group.correct for group in crossed.groups(suite, seed=seed)}
    assert figure("fig9_base", results, crossed.run.root) and results.of_base(1)[1]["base"].eq(1).all()
