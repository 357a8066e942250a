"""CONTRIBUTING.md's recipes, made in a copy of the repository as they are written, and the tests that they add to."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
IS_TRAINED = """
from small import RewardsFirstToken, policy, sum_problems, tokenizer
from test_tuning import TRAIN
from dphlib.settings.variants import RunConfig
from dphlib.training.loop import train

def test_the_new_method_is_trained():
    method = RunConfig("dapo_dexp", "main", 0).method_config
    log = train(policy(), tokenizer(), sum_problems(8), [], RewardsFirstToken(), method, TRAIN, 0)
    assert len(log) == TRAIN.iterations and all(row["grad_norm"] > 0 for row in log)
"""
IS_LISTED = """
from pathlib import Path
from tools import third_party

def test_the_new_set_is_listed_with_its_licence():
    rows = third_party.page_blocks(Path(__file__).parents[1])["data-sets"].splitlines()
    (row,) = [row for row in rows if row.startswith("| **Our sums** (`our_sums`)")]
    assert "CC0-1.0 (read in: its README)" in row
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    left_out = shutil.ignore_patterns(".*", "artifacts", "build", "dist", "*.egg-info", "__pycache__")
    root = Path(shutil.copytree(ROOT, tmp_path / "copy", ignore=left_out))
    unread = shutil.ignore_patterns("notebooks", "report", "figures")
    shutil.copytree(ROOT / "artifacts/reference", root / "artifacts/reference", ignore=unread)
    return root


def follow(title: str, root: Path) -> list[str]:
    """Makes the changes of a recipe: context and removed lines must be in the file exactly once. The changed files."""
    recipe = TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]
    (diff,) = re.findall(r"```diff\n(.*?)```", recipe, re.DOTALL)
    files = re.split(r"^--- (\S+)\n", diff, flags=re.MULTILINE)[1:]
    for name, hunks in zip(files[::2], files[1::2], strict=True):
        text = (root / name).read_text(encoding="utf-8")
        for hunk in hunks.split("@@\n")[1:]:
            lines = [(line[:1], line[1:] + "\n") for line in hunk.splitlines()]
            old, new = ("".join(text for sign, text in lines if sign in kept) for kept in (" -", " +"))
            assert text.count(old) == 1, f"{name} has this {text.count(old)} times:\n{old}"
            text = text.replace(old, new)
        (root / name).write_text(text, encoding="utf-8")
    return files[::2]


@pytest.mark.parametrize(
    ("title", "new_test", "files", "chosen", "at_least"),
    [
        ("A divergence", "", ["test_divergences.py", "test_lessons.py"], "le_cam or table_of", 10),
        ("A data set", IS_LISTED, ["test_data.py"], "our_sums or table_names", 2),
        ("A method", IS_TRAINED, ["test_variants.py", "test_plots.py"], "controls or named or colour", 3),
    ],
)
def test_a_recipe_touches_two_files_of_the_library_at_most_and_holds(copy, title, new_test, files, chosen, at_least):
    changed = follow(title, copy)
    assert changed and len([name for name in changed if name.startswith("dphlib/")]) <= 2
    if new_test:
        (copy / "tests/test_new.py").write_text(new_test)
    files = [f"tests/{name}" for name in (*files, "test_new.py") if (copy / "tests" / name).is_file()]
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", f"test_new or {chosen}")
    done = subprocess.run([sys.executable, "-m", "pytest", *options, *files], cwd=copy, text=True, capture_output=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= at_least + bool(new_test)


def test_the_map_names_what_there_is():
    table = TEXT.split("| you want to change |")[1].split("\n\n")[0]
    named = re.findall(r"`([\w/]+)`", table)
    assert len(named) > 15
    for name in named:
        assert (ROOT / "dphlib" / name).is_dir() or (ROOT / "dphlib" / f"{name}.py").is_file(), name
