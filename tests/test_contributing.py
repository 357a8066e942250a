"""CONTRIBUTING.md's recipes, made in a copy of the repository as they are written, and the tests that they add to."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
IS_TRAINED = """
from small import policy, sum_problems, tokenizer
from test_tuning import TRAIN, RewardsFirstToken
from dphlib import trainer
from dphlib.settings.profiles import RunConfig

def test_the_new_method_is_trained():
    method = RunConfig("dapo_dexp", "main", 0).method_config
    log = trainer.train(policy(), tokenizer(), sum_problems(8), [], RewardsFirstToken(), method, TRAIN, 0)
    assert len(log) == TRAIN.iterations and all(row["grad_norm"] > 0 for row in log)
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    left_out = shutil.ignore_patterns(".*", "artifacts", "build", "dist", "*.egg-info", "__pycache__")
    root = Path(shutil.copytree(ROOT, tmp_path / "copy", ignore=left_out))
    unread = shutil.ignore_patterns("notebooks", "report", "figures")
    shutil.copytree(ROOT / "artifacts/reference", root / "artifacts/reference", ignore=unread)
    return root


def follow(title: str, root: Path) -> None:
    """Makes the changes of a recipe: context and removed lines must be in the file exactly once."""
    recipe = TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]
    (diff,) = re.findall(r"```diff\n(.*?)```", recipe, re.DOTALL)
    files = re.split(r"^--- (\S+)\n", diff, flags=re.MULTILINE)[1:]
    assert files
    for name, hunks in zip(files[::2], files[1::2], strict=True):
        text = (root / name).read_text(encoding="utf-8")
        for hunk in hunks.split("@@\n")[1:]:
            lines = [(line[:1], line[1:] + "\n") for line in hunk.splitlines()]
            old, new = ("".join(text for sign, text in lines if sign in kept) for kept in (" -", " +"))
            assert text.count(old) == 1, f"{name} has this {text.count(old)} times:\n{old}"
            text = text.replace(old, new)
        (root / name).write_text(text, encoding="utf-8")


def python(root: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=root, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def passed(root: Path, *arguments: str) -> int:
    """How many tests passed; none may fail."""
    said = python(root, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments)
    return int(re.search(r"(\d+) passed", said)[1])


def test_a_divergence(copy):
    follow("A divergence", copy)
    files = ("tests/test_divergences.py", "tests/test_conjugates.py", "tests/test_lessons.py")
    assert passed(copy, *files, "-k", "le_cam or table_of") >= 20


def test_a_data_set(copy):
    follow("A data set", copy)
    assert passed(copy, "tests/test_data.py", "-k", "our_sums or table_names") == 2
    python(copy, "-m", "tools.site", "--write")
    row = re.search(
        r"^\| \*\*Our sums\*\* \(`our_sums`\) \| (.*?) \|", (copy / "THIRD_PARTY.md").read_text(), re.MULTILINE
    )
    assert row[1] == "CC0-1.0 (read in: its README)"


def test_a_method(copy):
    follow("A method", copy)
    (copy / "tests/test_new_method.py").write_text(IS_TRAINED)
    files = ("tests/test_new_method.py", "tests/test_variants.py", "tests/test_plots.py")
    assert passed(copy, *files, "-k", "new_method or controls or named or colour") >= 4


def test_links_and_modules_of_the_map_exist():
    for link in re.findall(r"\]\(([^)#]+)[)#]", TEXT):
        assert (ROOT / link).exists(), link
    table = TEXT.split("| you want to change |")[1].split("\n\n")[0]
    named = re.findall(r"`(\w+)`", table)
    assert len(named) > 15
    for name in named:
        assert (ROOT / "dphlib" / f"{name}.py").is_file(), name
