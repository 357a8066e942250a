"""README against the repository: commands exist, paths exist, code runs, numbers come from the recorded run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from dphlib.cli import main as cli
from dphlib.experiment.store import verify_run_manifest
from tools.readme import stale_blocks

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REFERENCE = ROOT / "artifacts" / "reference"


def test_generated_blocks_are_those_of_the_reference_run():
    assert stale_blocks(ROOT / "README.md", REFERENCE) == []


def test_the_reference_run_is_whole_and_small_enough():
    assert verify_run_manifest(REFERENCE) == []
    assert sum(path.stat().st_size for path in REFERENCE.rglob("*") if path.is_file()) < 20 * 2**20


def test_linked_files_exist():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_named_modules_and_folders_exist():
    tree = README.split("```\nrun_all.sh", 1)[1].split("```", 1)[0]
    modules = re.findall(r"^  ([a-z_ ]+?)  +\S", tree.replace("verify_math   ", "verify_math    "), re.MULTILINE)
    named = [name for line in modules for name in line.split()]
    assert len(named) > 20
    for name in named:
        assert (ROOT / "dphlib" / f"{name}.py").is_file(), name
    for path in re.findall(r"`(artifacts/reference/[\w./]+)`", README):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`dph ([a-z]+)", README))))
def test_dph_commands_exist(command, capsys):
    assert command in cli.COMMANDS
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0 and "usage: dph" in capsys.readouterr().out


@pytest.mark.parametrize("argument", sorted(set(re.findall(r"\./run_all\.sh ([a-z][a-z0-9-]*)", README))))
def test_run_all_knows_its_arguments(argument):
    usage = subprocess.run(["bash", str(ROOT / "run_all.sh"), "--help"], capture_output=True, text=True, timeout=60)
    assert usage.returncode == 0
    assert re.search(rf"(?<![\w-]){argument}(?![\w-])", usage.stdout)


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_code_runs_as_written(code):
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["logprobs"].grad.isfinite().all()
    assert names["logprobs"].grad.any()


def test_figures_tables_and_claims_are_drawn_again_byte_by_byte(tmp_path, capsys):
    status = cli.replot(REFERENCE, tmp_path)
    assert status == 0, capsys.readouterr().out
    assert len(list(tmp_path.rglob("*.svg"))) == len(list((tmp_path / "figures").glob("*.png"))) >= 9
