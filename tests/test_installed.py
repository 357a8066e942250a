"""The wheel in environments that have nothing but what it asks for: Colab's bootstrap, one command, a missing extra."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from test_package import built, tree, wheel  # noqa: F401 fixtures

from dphlib import __version__
from dphlib.report.notebooks import check_executed
from tools import site

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = "https://github.com/somebody/some-name"
COLAB = """
import sys, types
sys.modules["google.colab"] = types.ModuleType("google.colab")
exec(sys.stdin.read())
"""


def needed(*requirements: str) -> set[str]:
    """Names of the installed packages that requirements ask for, theirs included."""
    waiting, seen = [Requirement(line) for line in requirements], set()
    while waiting:
        one = waiting.pop()
        if (key := (one.name, frozenset(one.extras))) in seen:
            continue
        seen.add(key)
        for line in importlib.metadata.requires(one.name) or []:
            need = Requirement(line)
            if not need.marker or any(need.marker.evaluate({"extra": extra}) for extra in ("", *one.extras)):
                waiting.append(need)
    return {name for name, _ in seen}


class Environment:
    """A virtual environment with pip and links to installed packages, these and no other."""

    def __init__(self, folder: Path, *requirements: str) -> None:
        self.folder, borrowed = folder / "venv", folder / "borrowed"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.folder)], check=True, timeout=60)
        borrowed.mkdir()
        for name in needed("pip", *requirements):
            distribution = importlib.metadata.distribution(name)
            for entry in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
                if not (borrowed / entry).exists():
                    (borrowed / entry).symlink_to(distribution.locate_file(entry))
        self.site = Path(sysconfig.get_path("purelib", "venv", {"base": str(self.folder)}))
        (self.site / "borrowed.pth").write_text(f"{borrowed}\n")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
        offline = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        self.environment = kept | offline

    def run(self, command: str, *arguments: str, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.folder / "bin" / command), *arguments],
            cwd=cwd, env=self.environment, input=stdin, text=True, capture_output=True, timeout=300,
        )  # fmt: skip


@pytest.fixture(scope="module")
def reader(wheel, tmp_path_factory) -> tuple[Environment, Path]:  # noqa: F811
    """An environment into which the notebooks' bootstrap cell put dphlib, and the cell's folder."""
    folder = tmp_path_factory.mktemp("reader")
    environment = Environment(folder, *declared(wheel, "notebooks"))
    source = site.bootstrap_source(ADDRESS)
    release = f"git+{ADDRESS}@v{__version__}"
    assert release in source
    done = environment.run("python", "-c", COLAB, cwd=folder, stdin=source.replace(release, wheel.as_uri()))
    assert done.returncode == 0, done.stderr[-2000:]
    return environment, folder


def declared(wheel: Path, extra: str = "") -> list[str]:  # noqa: F811
    """What the wheel's metadata ask for, with an extra; extras that name others are followed."""
    (metadata,) = importlib.metadata.Distribution.discover(path=[str(wheel)])
    needs = [Requirement(line) for line in metadata.requires or []]
    found = []
    for need in needs:
        if need.marker and not need.marker.evaluate({"extra": extra}):
            continue
        if need.name == "dphlib":
            found += declared(wheel, *need.extras)
        else:
            need.marker = None
            found.append(str(need))
    return found


def test_the_bootstrap_cell_installs_the_package_and_nothing_else(reader):
    environment, _ = reader
    there = {path.name for path in environment.site.iterdir() if path.name != "__pycache__"}
    assert there == {"borrowed.pth", "dphlib", f"dphlib-{__version__}.dist-info"}


def test_one_command_runs_a_notebook_away_from_the_repository(reader, tmp_path):
    """The first of `smoke`; results go to the reader's folder, and the reference run's numbers stand beside them."""
    environment, _ = reader
    done = environment.run("dph", "run", "--profile", "smoke", "--only", "00", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [path.name for path in tmp_path.iterdir()] == ["artifacts"]
    executed = tmp_path / "artifacts/smoke/notebooks/00_kick_the_tires.ipynb"
    assert check_executed(executed) > 3
    recorded = json.loads((ROOT / "artifacts/reference/metrics/00_kick_the_tires.json").read_text())
    page = json.dumps([cell.get("outputs", []) for cell in nbformat.read(executed, as_version=4).cells])
    assert "reference run" in page and "not recorded" not in page
    assert all(name in page for name in recorded)


def test_the_notebooks_are_copied_out_and_never_overwritten(reader, tmp_path):
    environment, _ = reader
    for _ in range(2):
        done = environment.run("dph", "notebooks", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    for source in (ROOT / "notebooks").glob("*.ipynb"):
        assert (tmp_path / "notebooks" / source.name).read_bytes() == source.read_bytes()
    (tmp_path / "notebooks/01_divergences.ipynb").write_text("my own")
    done = environment.run("dph", "notebooks", cwd=tmp_path)
    assert done.returncode == 1 and "01_divergences.ipynb is there and differs" in done.stderr
    assert (tmp_path / "notebooks/01_divergences.ipynb").read_text() == "my own"


def test_what_needs_the_repository_says_so_in_one_line(reader, tmp_path):
    environment, _ = reader
    says = {
        "claims": "artifacts/reference/manifest.json is not there",
        "replot": "no recorded run in artifacts/reference",
        "plan": "no recorded run of profile cpu",
        "reference": "writes into a clone of the repository",
    }
    program = f"from dphlib.__main__ import main\nprint([main([name]) for name in {list(says)}])"
    done = environment.run("python", "-c", program, cwd=tmp_path)
    assert done.stdout == "[1, 1, 1, 1]\n", done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(says) and all(text in line for text, line in zip(says.values(), lines, strict=True)), lines


def test_the_core_alone_has_the_loss_and_names_the_extra_that_the_command_line_needs(wheel, tmp_path):  # noqa: F811
    environment = Environment(tmp_path, *declared(wheel))
    started = time.monotonic()
    done = environment.run("python", "-m", "pip", "install", "--quiet", str(wheel), cwd=tmp_path)
    assert done.returncode == 0 and time.monotonic() - started < 20, done.stderr
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"## Use it in your own trainer.*?```python\n(.*?)```", readme, re.DOTALL)[1]
    done = environment.run("python", "-", cwd=tmp_path, stdin=f"{code}\nimport dphlib\nprint(dphlib.__file__)")
    assert done.stdout.strip() == str(environment.site / "dphlib/__init__.py"), done.stderr[-2000:]
    done = environment.run("dph", "run", "--profile", "smoke", cwd=tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(r'dph: \w+ is not installed; it comes with: pip install "dphlib\[run\]"\n', done.stderr)


def test_the_stages_run_without_jupyter_and_notebooks_name_their_extra(wheel, tmp_path):  # noqa: F811
    environment = Environment(tmp_path, *declared(wheel, "run"))
    done = environment.run("python", "-m", "pip", "install", "--quiet", f"dphlib[run] @ {wheel.as_uri()}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = environment.run("dph", "plan", "--profile", "gpu80", cwd=tmp_path)
    assert done.returncode == 0 and "GiB" in done.stdout, done.stderr
    done = environment.run("dph", "run", "--profile", "smoke", "--only", "00", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith('is not installed; it comes with: pip install "dphlib[notebooks]"\n'), done.stderr
