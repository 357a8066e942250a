"""What an import brings along. Which room may import which is import-linter's (pyproject.toml)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dphlib"

# These compute with tensors; every other module is imported without torch. A room's name stands for all of it.
WITH_TORCH = """
divergences logprobs losses models sampling training
experiment.policies experiment.draws experiment.evaluate experiment.fresh_answers experiment.tempered
experiment.train_run integrations.trl integrations.verl.loss integrations.verl.plugin
lessons.categorical lessons.estimators lessons.sliders lessons.world
""".split()


def run_python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_modules_that_need_no_torch_are_imported_without_it():
    paths = (path.relative_to(PACKAGE).with_suffix("") for path in sorted(PACKAGE.rglob("*.py")))
    names = [".".join(path.parts) for path in paths if not path.name.startswith("__")]
    names = [name for name in names if name not in WITH_TORCH and name.split(".")[0] not in WITH_TORCH]
    program = f"""
import importlib, sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("torch is not there")
sys.meta_path.insert(0, NoTorch())
for name in {names!r}:
    try:
        importlib.import_module("dphlib." + name)
    except ImportError as error:
        print(f"{{name}}: {{error}}")
from dphlib.runtime.machine import machine, versions
machine(), versions()
print("end")
"""
    assert run_python(program) == "end\n"


def test_generators_and_loss_bring_nothing_but_torch_and_numpy_along():
    others = "transformers peft accelerate datasets pandas pyarrow scipy seaborn matplotlib papermill rich".split()
    program = "import sys, dphlib.divergences, dphlib.losses, dphlib.partition; print(*sys.modules)"
    loaded = {name.split(".")[0] for name in run_python(program).split()}
    assert "torch" in loaded and not loaded & set(others)


def test_importing_the_package_is_cheap():
    program = "import sys, dphlib; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert run_python(program).split() == ["False", "False"]


def test_nothing_is_written_as_pickle_no_remote_code_is_trusted_and_no_tool_of_the_repository_imported():
    pickles = r"^\s*import pickle\b|\bpickle\.|\btorch\.(save|load)\(|\bjoblib\b|\ballow_pickle\s*=\s*True"
    tools = r"^\s*(from|import) (tools|tests)\b"
    unwanted = re.compile(rf"{pickles}|\btrust_remote_code\s*=\s*True|{tools}", re.MULTILINE)
    assert [path.name for path in PACKAGE.rglob("*.py") if unwanted.search(path.read_text(encoding="utf-8"))] == []
