"""Wheel and sdist, and the wheel in environments that have nothing but what it asks for."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement

from dphlib import __version__
from dphlib.analysis.tables import quantity
from dphlib.report.notebooks import check_executed
from tools.blocks import rendered

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
NAME = f"dphlib-{__version__}"
CARRIED = {"_notebooks": ROOT / "notebooks", "_reference": ROOT / "artifacts/reference/metrics"}
PATTERNS = ("*.py", "*.toml", "py.typed", "templates/*")
OURS = {path.relative_to(ROOT).as_posix() for kind in PATTERNS for path in (ROOT / "dphlib").rglob(kind)}
STRAY = """dphlib/notes.txt artifacts/cpu/records.parquet secrets.env mine.py notebooks/mine.ipynb
notebooks/.ipynb_checkpoints/00_x-checkpoint.ipynb artifacts/reference/claims.json
artifacts/reference/metrics/mine.json""".split()
SHIPPED = ("artifacts/bases/bases.json", "artifacts/bases/0/model.safetensors")
ADDRESS = "https://github.com/somebody/some-name"
COLAB = """
import sys, types
sys.modules["google.colab"] = types.ModuleType("google.colab")
exec(sys.stdin.read())
"""


def built(kind: str, source: Path, out: Path) -> Path:
    """A distribution, by the same backend that pip and build call; no network."""
    program = f"import sys; from setuptools.build_meta import build_{kind} as build; build(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, str(out)], cwd=source, check=True, capture_output=True)
    (path,) = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return path


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the repository, with files in it that do not belong in a package."""
    left_out = shutil.ignore_patterns(".*", "artifacts", "build", "dist", "*.egg-info", "__pycache__")
    root = Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("tree") / "copy", ignore=left_out))
    shutil.copytree(CARRIED["_reference"], root / "artifacts/reference/metrics")
    for stray in (*STRAY, *SHIPPED):
        (root / stray).parent.mkdir(parents=True, exist_ok=True)
        (root / stray).write_text("")
    return root


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory) -> Path:
    return built("wheel", tree, tmp_path_factory.mktemp("wheel"))


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_modules_templates_notebooks_and_reference_numbers_and_nothing_else(wheel):
    held = {name: content for name, content in contents(wheel).items() if ".dist-info/" not in name}
    carried = {
        f"dphlib/{name}/{path.name}": path.read_bytes()
        for name, folder in CARRIED.items()
        for path in folder.glob("[0-9]*.*")
    }
    assert set(held) == OURS | set(carried) and {name: held[name] for name in carried} == carried
    assert wheel.stat().st_size < 2**20


def test_the_sdist_makes_the_same_wheel_and_has_papers_and_bases(tree, wheel, tmp_path):
    with tarfile.open(built("sdist", tree, tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    assert contents(built("wheel", tmp_path / NAME, tmp_path)) == contents(wheel)
    names = {path.name for path in (tmp_path / NAME).iterdir()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "THIRD_PARTY.md", "constraints.txt"} <= names
    assert all((tmp_path / NAME / name).is_file() for name in SHIPPED)
    assert not names & {"tests", "tools", "secrets.env", "mine.py"}


# --- Installed ----------------------------------------------------------------------------------------


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


def declared(wheel: Path, extra: str = "") -> list[str]:
    """What the wheel's metadata ask for, with an extra; extras that name others are followed."""
    (metadata,) = importlib.metadata.Distribution.discover(path=[str(wheel)])
    found = []
    for need in map(Requirement, metadata.requires or []):
        if need.marker and not need.marker.evaluate({"extra": extra}):
            continue
        if need.name == "dphlib":
            found += declared(wheel, *need.extras)
        else:
            need.marker = None
            found.append(str(need))
    return found


class Environment:
    """A virtual environment with pip and links to installed packages, these and no other."""

    def __init__(self, folder: Path, *requirements: str) -> None:
        self.folder, borrowed = folder / "venv", folder / "borrowed"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.folder)], check=True)
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
        options = {"cwd": cwd, "env": self.environment, "input": stdin, "text": True, "capture_output": True}
        return subprocess.run([str(self.folder / "bin" / command), *arguments], **options)


@pytest.fixture(scope="module")
def reader(wheel, tmp_path_factory) -> Environment:
    """An environment into which the notebooks' bootstrap cell put dphlib."""
    folder = tmp_path_factory.mktemp("reader")
    environment = Environment(folder, *declared(wheel, "notebooks"))
    cell = rendered("site", address=ADDRESS, github="", version=__version__, notebook="", first="")["bootstrap"]
    release = f"git+{ADDRESS}@v{__version__}"
    assert release in cell
    done = environment.run("python", "-c", COLAB, cwd=folder, stdin=cell.replace(release, wheel.as_uri()))
    assert done.returncode == 0, done.stderr[-2000:]
    there = {path.name for path in environment.site.iterdir() if path.name != "__pycache__"}
    assert there == {"borrowed.pth", "dphlib", f"{NAME}.dist-info"}, "it installs the package and nothing else"
    return environment


def test_one_command_runs_a_notebook_away_from_the_repository(reader, tmp_path):
    """The first of `smoke`; results go to the reader's folder, the reference run's numbers are shown beside them."""
    done = reader.run("dph", "run", "--profile", "smoke", "--only", "00", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [path.name for path in tmp_path.iterdir()] == ["artifacts"]
    executed = tmp_path / "artifacts/smoke/notebooks/00_kick_the_tires.ipynb"
    assert check_executed(executed) > 3
    page = json.dumps([cell.get("outputs", []) for cell in nbformat.read(executed, as_version=4).cells])
    recorded = json.loads((CARRIED["_reference"] / "00_kick_the_tires.json").read_text())
    assert "reference run" in page and "not recorded" not in page and all(quantity(name) in page for name in recorded)


def test_the_notebooks_are_copied_out_and_never_overwritten(reader, tmp_path):
    for _ in range(2):
        done = reader.run("dph", "notebooks", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    for source in (ROOT / "notebooks").glob("*.ipynb"):
        assert (tmp_path / "notebooks" / source.name).read_bytes() == source.read_bytes()
    (tmp_path / "notebooks/01_divergences.ipynb").write_text("my own")
    done = reader.run("dph", "notebooks", cwd=tmp_path)
    assert done.returncode == 1 and "01_divergences.ipynb is there and differs" in done.stderr
    assert (tmp_path / "notebooks/01_divergences.ipynb").read_text() == "my own"


def test_what_needs_recorded_results_says_so_in_one_line_and_the_report_finds_its_templates(reader, tmp_path):
    says = {
        "claims": "artifacts/reference/manifest.json is not there",
        "replot": "no recorded run in artifacts/reference",
        "plan": "no recorded run of profile cpu",
        "report": "artifacts/reference/claims.json is not there",
    }
    program = f"from dphlib.__main__ import main\nprint([main([name]) for name in {list(says)}])"
    done = reader.run("python", "-c", program, cwd=tmp_path)
    assert done.stdout == "[1, 1, 1, 1]\n", done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(says) and all(text in line for text, line in zip(says.values(), lines, strict=True)), lines
    program = "from dphlib.report.rendering import TEMPLATES\nprint(*TEMPLATES.list_templates())"
    found = reader.run("python", "-c", program, cwd=tmp_path).stdout.split()
    assert {"page.html.j2", "report.css", "explorer.html.j2", "explorer.js"} <= set(found)


def test_the_core_alone_has_the_loss_and_names_the_extra_that_the_command_line_needs(wheel, tmp_path):
    assert sorted(declared(wheel)) == ["numpy", "torch>=2.11"]
    environment = Environment(tmp_path, *declared(wheel))
    done = environment.run("python", "-m", "pip", "install", "--quiet", str(wheel), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"## Use it in your own trainer.*?```python\n(.*?)```", readme, re.DOTALL)[1]
    done = environment.run("python", "-", cwd=tmp_path, stdin=f"{code}\nimport dphlib\nprint(dphlib.__file__)")
    assert done.stdout.strip() == str(environment.site / "dphlib/__init__.py"), done.stderr[-2000:]
    done = environment.run("dph", "run", "--profile", "smoke", cwd=tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(r'dph: \w+ is not installed; it comes with: pip install "dphlib\[run\]"\n', done.stderr)


def test_the_stages_run_without_jupyter_and_notebooks_name_their_extra(wheel, tmp_path):
    environment = Environment(tmp_path, *declared(wheel, "run"))
    done = environment.run("python", "-m", "pip", "install", "--quiet", f"dphlib[run] @ {wheel.as_uri()}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = environment.run("dph", "plan", "--profile", "gpu80", cwd=tmp_path)
    assert done.returncode == 0 and "GiB" in done.stdout, done.stderr
    done = environment.run("dph", "run", "--profile", "smoke", "--only", "00", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith('is not installed; it comes with: pip install "dphlib[notebooks]"\n'), done.stderr


def test_a_kernel_that_is_there_needs_only_the_extra_for_colab(wheel, tmp_path):
    """All that notebooks import, and the report's pages of them, without JupyterLab and what executes notebooks."""
    needs = declared(wheel, "colab")
    assert {Requirement(need).name for need in needs} <= {
        Requirement(need).name for need in declared(wheel, "notebooks")
    }
    environment = Environment(tmp_path, *needs, "ipython")
    done = environment.run(
        "python", "-m", "pip", "install", "--quiet", f"dphlib[colab] @ {wheel.as_uri()}", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    code = [cell.source for path in sorted((ROOT / "notebooks").glob("*.ipynb")) for cell in _code(path)]
    imports = {line for source in code for line in re.findall(r"(?m)^(?:import|from \S+ import) [\w ,.]+$", source)}
    (tmp_path / "run/notebooks").mkdir(parents=True)
    shutil.copy(ROOT / "notebooks/01_divergences.ipynb", tmp_path / "run/notebooks")
    environment.environment["JUPYTER_PATH"] = str(Path(sys.prefix, "share/jupyter"))  # nbconvert's templates
    page = "from pathlib import Path\nfrom dphlib.report.pages import notebook_pages\nnotebook_pages(Path('run'))"
    done = environment.run("python", "-", cwd=tmp_path, stdin="\n".join([*sorted(imports), page]))
    assert done.returncode == 0, done.stderr
    assert len(imports) > 30 and "<math" in (tmp_path / "run/report/notebooks/01_divergences.html").read_text()
    done = environment.run("python", "-c", "import jupyterlab, papermill", cwd=tmp_path)
    assert "No module named 'jupyterlab'" in done.stderr


def _code(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
