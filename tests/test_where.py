"""`dph where`: the folder of what is there, and for what is not the command that makes it; nothing is built."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest
from small import base_config, save_policy, small_profile

from dphlib.cli import main as cli
from dphlib.cli import where
from dphlib.experiment.pipeline import Pipeline
from dphlib.integrations import store
from dphlib.settings.profiles import profile

PLACES = ("base", "partition", "store", "databases")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(where, "profile_from_environment", lambda name: small_profile())


def printed(capsys, *words) -> tuple[int, str, str]:
    status = cli.main(["where", *map(str, words)])
    return status, *capsys.readouterr()


@pytest.mark.slow
def test_what_is_there_is_printed_and_is_what_the_stages_say(small, tmp_path, capsys):
    pipeline = Pipeline(tmp_path / "smoke", small_profile())
    store.export(tmp_path / "smoke-store", pipeline.parts(), 6, pipeline.base_folder())
    there = (pipeline.base_folder(), pipeline.partition().path, tmp_path / "smoke-store", pipeline.databases())
    capsys.readouterr()
    for place, folder in zip(PLACES, there, strict=True):
        assert printed(capsys, place, "--artifacts", tmp_path) == (0, f"{folder}\n", "")
        assert folder.is_dir()


@pytest.mark.parametrize("opened", [False, True], ids=["no run folder", "nothing in it"])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_not_there_is_one_line_with_the_command_that_makes_it(small, tmp_path, capsys, place, opened):
    if opened:
        Pipeline(tmp_path / "smoke", small_profile())
    before = sorted(tmp_path.rglob("[!.]*"))
    status, out, err = printed(capsys, place, "--artifacts", tmp_path)
    (line,) = err.splitlines()
    assert (status, out) == (1, "") and line.startswith(f"dph: no {place} ") and str(tmp_path) in line
    assert sorted(tmp_path.rglob("[!.]*")) == before, "nothing was built"
    _, *command = shlex.split(line.split("`")[1])
    asked = {"base": "presample", "databases": "presample"}.get(place, "partition")
    assert command[:5] == [asked, "--profile", "smoke", "--artifacts", str(tmp_path)]
    assert command[5:] == (["--export", str(tmp_path / "smoke-store")] if place == "store" else [])


def test_a_base_of_ones_own_is_its_folder_and_one_of_the_hub_is_not_downloaded(tmp_path, capsys, monkeypatch):
    (tmp_path / "gpu80" / "stages").mkdir(parents=True)
    own = save_policy(tmp_path / "own")
    settings = profile("gpu80")
    status, out, err = printed(capsys, "base", "--profile", "gpu80", "--artifacts", tmp_path)
    assert (status, out) == (1, "") and "`dph presample --profile gpu80" in err
    monkeypatch.setattr(where, "profile_from_environment", lambda name: replace(settings, base=base_config(own)))
    assert printed(capsys, "base", "--profile", "gpu80", "--artifacts", tmp_path) == (0, f"{own}\n", "")


def test_an_unknown_place_names_those_that_there_are(capsys):
    with pytest.raises(SystemExit):
        cli.main(["where", "weights"])
    said = capsys.readouterr().err
    assert all(place in said for place in PLACES)
