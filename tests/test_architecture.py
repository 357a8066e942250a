"""The shape of the repository: imports run one way, torch stays where it belongs, sources are clean."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from dphlib.report.notebooks import declared_parameters

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dphlib"

# These compute with tensors; every other module is imported without torch. A room's name stands for all of it.
WITH_TORCH = {
    "divergences", "logprobs", "losses", "models", "sampling", "training", "experiment.policies", "experiment.draws",
    "experiment.evaluate", "experiment.train_run", "integrations.trl", "integrations.verl.loss",
    "integrations.verl.plugin", "lessons.categorical", "lessons.estimators", "lessons.world",
}  # fmt: skip

PATHS = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name not in ("__init__.py", "__main__.py")
}
MODULES = sorted(PATHS)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WRITTEN = (
    ".py",
    ".sh",
    ".md",
    ".toml",
    ".txt",
    ".yml",
    ".yaml",
    ".cff",
    ".json",
    ".jsonl",
    ".csv",
    ".svg",
    ".html",
)


def sources() -> list[Path]:
    """Files of this repository that somebody wrote or that a run left to be committed."""
    found = [path for path in ROOT.iterdir() if path.is_file() and not path.name.startswith(".")]
    for folder in ("dphlib", "tools", "tests", "notebooks", "docs", "artifacts/reference", ".binder", ".ci", ".github"):
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return found


def text_of(path: Path) -> str:
    """What is to be read of a file; a notebook's pictures, which are random letters, are left out."""
    if path.suffix == ".ipynb":
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            for output in cell.get("outputs", []):
                output.get("data", {}).pop("image/png", None)
        return json.dumps(notebook, ensure_ascii=False)
    if path.suffix in WRITTEN or path.parent.name == ".ci" or path.name in ("LICENSE", ".gitignore"):
        return path.read_text(encoding="utf-8")
    return ""


# --- Modules ------------------------------------------------------------------------------------------


def run_python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_modules_that_need_no_torch_are_imported_without_it():
    modules = [name for name in MODULES if name not in WITH_TORCH and name.split(".")[0] not in WITH_TORCH]
    program = f"""
import importlib, sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("torch is not there")
sys.meta_path.insert(0, NoTorch())
for name in {modules!r}:
    try:
        importlib.import_module("dphlib." + name)
    except ImportError as error:
        print(f"{{name}}: {{error}}")
print("end")
"""
    assert run_python(program) == "end\n"


def test_generators_and_loss_bring_nothing_but_torch_and_numpy_along():
    others = "transformers peft accelerate datasets pandas pyarrow scipy seaborn matplotlib papermill rich".split()
    program = "import sys, dphlib.divergences, dphlib.losses, dphlib.partition; print(*sys.modules)"
    loaded = {name.split(".")[0] for name in run_python(program).split()}
    assert "torch" in loaded and not loaded & set(others)


def test_importing_the_package_is_cheap():
    program = (
        "import sys, time; started = time.perf_counter(); import dphlib; "
        "print(time.perf_counter() - started, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    seconds, *heavy = run_python(program).split()
    assert float(seconds) < 0.2 and heavy == ["False", "False"]


@pytest.mark.parametrize("module", MODULES)
def test_module_is_typed_and_says_what_it_is(module):
    text = PATHS[module].read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert "from __future__ import annotations" in text
    public = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    bare = [node.name for node in public if node.returns is None]
    assert not bare, f"no return type: {bare}"


def test_nothing_is_written_as_pickle_and_no_remote_code_is_trusted():
    unsafe = re.compile(
        r"\bpickle\b|\btorch\.(save|load)\(|\bjoblib\b|trust_remote_code\s*=\s*True|allow_pickle\s*=\s*True"
    )
    found = [path.name for path in PACKAGE.rglob("*.py") if unsafe.search(strip_docs(path.read_text()))]
    assert not found


def strip_docs(text: str) -> str:
    """Python source without comments and docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


# --- All sources --------------------------------------------------------------------------------------


def test_no_place_of_a_machine_in_any_file():
    place = re.compile(r"(?<![\w.~>-])/(?:work|tmp|root)/\S*")
    found = {str(path.relative_to(ROOT)): match[0] for path in sources() if (match := place.search(text_of(path)))}
    assert not found


def test_nothing_is_left_for_later():
    later = re.compile(
        r"\b(?:" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error")) + r")\b"
    )
    # What a run wrote holds pictures as text, in which any three letters may stand.
    written = [path for path in sources() if ROOT / "artifacts" not in path.parents]
    found = {str(path.relative_to(ROOT)): match[0] for path in written if (match := later.search(text_of(path)))}
    assert not found


# --- Notebooks ----------------------------------------------------------------------------------------


def test_notebooks_are_numbered_from_zero_without_a_gap():
    numbers = [path.name[:3] for path in NOTEBOOKS]
    assert numbers and numbers == [f"{number:02}_" for number in range(len(NOTEBOOKS))]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_source_is_stripped_and_has_stable_ids(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)
    ids = [cell.get("id") for cell in notebook.cells]
    assert all(ids) and len(set(ids)) == len(ids)
    assert "papermill" not in notebook.metadata


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_its_tagged_cells_and_short_ones(path):
    names = declared_parameters(path)
    assert 1 <= len(names) <= 8
    cells = nbformat.read(path, as_version=4).cells
    tagged = {tag: cell for cell in cells for tag in cell.metadata.get("tags", [])}
    assert cells[0].metadata.get("tags") == ["badge"] and "bootstrap" in tagged
    statements = ast.parse(tagged["parameters"].source).body
    assert all(isinstance(node, ast.AnnAssign) for node in statements), "each parameter is annotated, nothing else"
    assert max(len(cell.source.splitlines()) for cell in cells if cell.cell_type == "code") <= 15
