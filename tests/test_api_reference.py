"""The API reference: pdoc makes it from the docstrings without a warning, a page for each module."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from dphlib import divergences, losses, partition, stats

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(path.stem for path in (ROOT / "dphlib").glob("[a-z]*.py"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    done = subprocess.run(
        [sys.executable, "-m", "tools.site", "--api", str(folder)],
        cwd=ROOT, text=True, capture_output=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"{folder / 'dphlib.html'}\n"), done.stdout + done.stderr[-2000:]
    return folder


def test_every_module_has_a_page_and_the_first_page_leads_to_it(pages):
    assert sorted(path.stem for path in (pages / "dphlib").glob("*.html")) == MODULES
    first = (pages / "dphlib.html").read_text()
    assert all(f'href="dphlib/{name}.html"' in first for name in MODULES)


@pytest.mark.parametrize("module", [divergences, losses, partition, stats])
def test_public_functions_and_classes_stand_on_their_modules_page(pages, module):
    page = (pages / f"{module.__name__.replace('.', '/')}.html").read_text()
    for name, thing in vars(module).items():
        if (
            getattr(thing, "__module__", "") == module.__name__
            and not name.startswith("_")
            and not inspect.ismodule(thing)
        ):
            assert f'id="{name}"' in page, name


def test_arguments_and_errors_are_lists_not_running_text(pages):
    page = (pages / "dphlib/losses.html").read_text()
    assert page.count("Arguments:") >= 3 and "Raises:" in page
