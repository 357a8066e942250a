"""A run folder survives what runs meet: SIGKILL, a full disk, damage, two at once, a changed parameter or source."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy
import pandas as pd
import pytest

from dphlib.analysis.claims import ClaimResult, PartResult, to_json
from dphlib.experiment import store
from dphlib.experiment.agreement import KEY, agreement, verdict_agreement
from dphlib.experiment.pipeline import CODE
from dphlib.experiment.store import NO_NUMBERS, code_version, open_run, work_folder
from dphlib.runtime import files
from dphlib.runtime.files import (
    RunError,
    append_jsonl,
    atomic_path,
    read_jsonl,
    read_manifest,
    require_space,
    write_json,
    write_text,
)
from dphlib.runtime.machine import PINNED, derive_seed, deterministic, seed_everything

REPOSITORY = Path(__file__).parents[1]


def build(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "weights.bin").write_bytes(bytes(range(256)) * 64)
    (folder / "log.jsonl").write_bytes(b'{"step": 1}\n')


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a run folder but the empty lock files; of manifests, what does not tell the time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name == "manifest.json":
            manifest = json.loads(path.read_text())
            found[name] = json.dumps([manifest["key"], manifest["files"]]).encode()
        elif path.is_file() and not path.name.startswith(".lock-"):
            found[name] = path.read_bytes()
    return found


def stage(root: Path, build=build, *, name="base", params=None, inputs=()):
    return open_run(root, "smoke").stage(name, params=params or {}, inputs=inputs, code=["types"], build=build)


def script(body: str, *arguments: object, **options) -> subprocess.Popen:
    """Another process that runs `body` with this file's `build` and `stage` at hand."""
    head = f"""
        import os, resource, signal, sys, time
        from pathlib import Path
        sys.path[:0] = [{str(REPOSITORY)!r}]
        from dphlib.experiment.store import open_run
        from dphlib.runtime.files import RunError, write_text
        root = Path(sys.argv[1])
        def build(folder):
            (folder / "model").mkdir()
            (folder / "model" / "weights.bin").write_bytes(bytes(range(256)) * 64)
            (folder / "log.jsonl").write_bytes(b'{{"step": 1}}\\n')
        def stage(build=build, name="base"):
            return open_run(root, "smoke").stage(name, params={{}}, code=["types"], build=build)
    """
    command = [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(body), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def machine_flags() -> list[str]:
    info = Path("/proc/cpuinfo")
    return info.read_text().split() if info.exists() else []


def new_process(monkeypatch) -> None:
    """Forgets which stages were hashed, as a process that starts does."""
    monkeypatch.setattr(store, "_verified", {})


# --- Stages ---------------------------------------------------------------------------------


def test_a_finished_stage_is_reused(tmp_path):
    first = stage(tmp_path)
    again = stage(tmp_path, lambda folder: pytest.fail("built twice"))
    assert (first.reused, again.reused) == (False, True)
    assert (first.path, first.key, first.content_hash) == (again.path, again.key, again.content_hash)
    assert again.path == tmp_path / "stages" / f"base-{again.key[:16]}"
    manifest = json.loads((again.path / "manifest.json").read_text())
    assert manifest["files"]["model/weights.bin"]["size"] == 256 * 64
    assert manifest["wall_s"] >= 0 and manifest["peak_gib"] > 0
    assert manifest["machine"]["cores"] >= 1 and "numpy" in manifest["versions"]


def test_the_key_depends_on_parameters_inputs_and_library_versions(tmp_path, monkeypatch):
    one = stage(tmp_path, params={"eta": 0.5, "seed": 0})
    assert stage(tmp_path, params={"seed": 0, "eta": 0.5}).reused, "the order of parameters says nothing"
    other = stage(tmp_path, lambda folder: write_text(folder / "x", "1"), params={"eta": 0.1, "seed": 0})
    assert other.key != one.key
    below = stage(tmp_path, name="policy", inputs=[one])
    assert stage(tmp_path, name="policy", inputs=[other]).key != below.key
    real = store.package_version
    monkeypatch.setattr(store, "package_version", lambda name: "0" if name == "numpy" else real(name))
    assert stage(tmp_path, params={"eta": 0.5, "seed": 0}).key != one.key


def test_downstream_follows_the_content_of_its_inputs_not_their_keys(tmp_path):
    below = stage(tmp_path, name="policy", inputs=[stage(tmp_path, params={"workers": 1})])
    same = stage(tmp_path, params={"workers": 2})  # another key, the same bytes
    assert stage(tmp_path, name="policy", inputs=[same]).path == below.path


def test_parameters_that_are_not_json_are_refused(tmp_path):
    with pytest.raises(TypeError, match="set"):
        stage(tmp_path, params={"methods": {"grpo"}})
    with pytest.raises(ValueError, match="letters, digits"):
        stage(tmp_path, name="../base")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("file", ["model/weights.bin", "log.jsonl", "manifest.json"])
@pytest.mark.parametrize("harm", [flip, truncate, Path.unlink, lambda path: path.write_bytes(b"")])
def test_damage_is_moved_aside_and_the_stage_built_again(tmp_path, monkeypatch, capsys, file, harm):
    whole = stage(tmp_path)
    before = tree(whole.path)
    harm(whole.path / file)
    if file == "manifest.json" and harm is truncate:
        (whole.path / file).write_bytes((whole.path / file).read_bytes()[:-1])  # the last byte is a newline
    new_process(monkeypatch)
    capsys.readouterr()
    again = stage(tmp_path)
    said = capsys.readouterr().err.splitlines()[0]
    assert not again.reused and tree(again.path) == before and again.content_hash == whole.content_hash
    assert file in said and "damaged-1" in said
    assert (tmp_path / "stages" / f"{again.path.name}.damaged-1").is_dir()
    harm(again.path / file) if harm is Path.unlink else (again.path / file).write_bytes(b"?")
    stage(tmp_path)
    assert (tmp_path / "stages" / f"{again.path.name}.damaged-2").is_dir()


def test_a_file_in_a_folders_place_and_the_other_way_round_are_damage(tmp_path):
    whole = stage(tmp_path)
    (whole.path / "model/weights.bin").unlink()
    (whole.path / "model").rmdir()
    (whole.path / "model").touch()
    assert not stage(tmp_path).reused
    (whole.path / "log.jsonl").unlink()
    (whole.path / "log.jsonl").mkdir()
    assert not stage(tmp_path).reused and stage(tmp_path).reused


def test_any_flipped_byte_of_a_manifest_is_noticed_or_without_meaning(tmp_path, monkeypatch):
    """A flip may only pass where it changes no value: white space for white space."""
    path = stage(tmp_path).path / "manifest.json"
    whole = path.read_bytes()
    manifest, _ = read_manifest(path.parent)
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found, problem = read_manifest(path.parent)
        assert problem or found == manifest, f"byte {place}"


def test_a_stage_under_another_stages_name_is_not_taken(tmp_path, monkeypatch):
    one, two = stage(tmp_path, params={"seed": 1}), stage(tmp_path, params={"seed": 2})
    one.path.rename(tmp_path / "aside")
    two.path.rename(one.path)
    assert not stage(tmp_path, params={"seed": 1}).reused


@pytest.mark.parametrize("error", [ValueError("no such table"), KeyboardInterrupt(), FileNotFoundError("dev.json")])
def test_a_failed_build_leaves_nothing_and_its_error_passes(tmp_path, error):
    def broken(folder):
        build(folder)
        raise error

    with pytest.raises(type(error)) as caught:
        stage(tmp_path, broken)
    assert caught.value is error
    assert tree(tmp_path) == {}
    assert not stage(tmp_path).reused


def test_a_build_must_write(tmp_path):
    with pytest.raises(RunError, match="base: the build must write a file"):
        stage(tmp_path, lambda folder: None)
    with pytest.raises(RunError, match=r"manifest.json"):
        stage(tmp_path, lambda folder: write_json(folder / "manifest.json", {}))


# --- Death in the middle --------------------------------------------------------------------


def test_sigkill_in_the_middle_of_a_build(tmp_path):
    clean, killed = tmp_path / "clean", tmp_path / "killed"
    stage(clean)
    body = """
        def slow(folder):
            (folder / "log.jsonl").write_bytes(b'{"st')
            print("half", flush=True)
            signal.pause()
        stage(slow)
    """
    run = open_run(killed, "smoke")
    for opened_again in (True, False):
        process = script(body, killed)
        assert process.stdout.readline() == "half\n"
        process.kill()
        process.communicate()
        assert any(".building-" in name for name in tree(killed)), "something half-written is there"
        if opened_again:
            run = open_run(killed, "smoke")
            assert tree(killed) == {}, "opening a run sweeps what dead builders left"
    run.stage("base", params={}, code=["types"], build=build)
    assert tree(killed) == tree(clean)


def test_sigkill_at_every_sync_and_rename(tmp_path):
    """The process kills itself before its n-th fsync, rename or replace, for n = 1 until it comes through."""
    stage(tmp_path / "clean")
    body = """
        left = [int(sys.argv[2])]
        def dying(call):
            def wrapped(*arguments, **options):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **options)
            return wrapped
        for name in ("fsync", "rename", "replace"):
            setattr(os, name, dying(getattr(os, name)))
        stage()
    """
    statuses = []
    for point in range(1, 20):
        root = tmp_path / str(point)
        process = script(body, root, point)
        process.communicate()
        statuses.append(process.returncode)
        again = stage(root)
        assert tree(root) == tree(tmp_path / "clean"), f"killed at point {point}"
        if process.returncode == 0:
            assert again.reused
            break
    assert statuses[-1] == 0 and len(statuses) > 4 and set(statuses[:-1]) == {-signal.SIGKILL}


def test_checkpoints_survive_until_the_stage_is_finished(tmp_path):
    seen = []

    def resumable(folder):
        checkpoint = work_folder(folder) / "step"
        seen.append(checkpoint.read_text() if checkpoint.exists() else "0")
        write_text(checkpoint, "7")
        if len(seen) == 1:
            raise KeyboardInterrupt
        build(folder)

    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path, resumable)
    finished = stage(tmp_path, resumable)
    assert seen == ["0", "7"]
    assert {path.name for path in finished.path.rglob("*")} == {"log.jsonl", "manifest.json", "model", "weights.bin"}
    assert not list((tmp_path / "stages").glob(".work-*")) and not list((tmp_path / "stages").glob(".building-*"))


def test_two_processes_at_once_build_once(tmp_path):
    body = """
        def slow(folder):
            with open(root.parent / "builds", "a") as log:
                log.write(f"{os.getpid()}\\n")
            print("begun", flush=True)
            while not (root.parent / "go").exists(): time.sleep(0.05)
            build(folder)
        print(stage(slow).reused)
    """
    builder = script(body, tmp_path / "run")
    assert builder.stdout.readline() == "begun\n"
    waiter = script(body, tmp_path / "run")
    assert "another process is building this stage; waiting" in waiter.stderr.readline()
    (tmp_path / "go").touch()
    assert [process.communicate()[0] for process in (builder, waiter)] == ["False\n", "True\n"]
    assert len((tmp_path / "builds").read_text().splitlines()) == 1
    stage(tmp_path / "clean")
    assert tree(tmp_path / "run") == tree(tmp_path / "clean")


def test_opening_a_run_leaves_a_living_builder_alone(tmp_path):
    def nested(folder):
        build(folder)
        open_run(tmp_path, "smoke")

    assert (stage(tmp_path, nested).path / "log.jsonl").exists()


# --- Disk and permissions -------------------------------------------------------------------


def test_a_full_disk_names_the_file_and_keeps_what_is_finished(tmp_path):
    """A limit on file sizes stands in for the full disk: the kernel refuses the write in the middle."""
    body = """
        stage()
        def large(folder):
            with open(folder / "large.bin", "wb") as file:
                file.write(bytes(2_000_000))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
        write_text(root / "table.csv", "old")
        text = "x" * 2_000_000
        for attempt in (lambda: stage(large, "large"), lambda: write_text(root / "table.csv", text)):
            try:
                attempt()
            except RunError as error:
                print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(stage().reused, stage(large, "large").reused, (root / "table.csv").read_text())
    """
    out, err = script(body, tmp_path).communicate()
    first, second, last = out.splitlines()
    assert "large" in first and "free space" in first and "run again" in first, err
    assert "table.csv" in second and "free space" in second
    assert last == "True False old"
    assert not list(tmp_path.rglob(".tmp-*")) and not list(tmp_path.rglob(".building-*"))


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "free space"),
        (RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"), "free space"),
        (PermissionError(errno.EACCES, "Permission denied"), "choose another folder"),
        (OSError(errno.EROFS, "Read-only file system"), "choose another folder"),
    ],
)
def test_errors_of_the_disk_name_the_way_out(tmp_path, monkeypatch, error, way_out):
    write_text(tmp_path / "claims.json", "old")

    def refuse(path):
        raise error

    monkeypatch.setattr(files, "fsync", refuse)
    with pytest.raises(RunError, match=f"claims.json: .*{way_out}.*run again"):
        write_json(tmp_path / "claims.json", {"new": 1})
    assert tree(tmp_path) == {"claims.json": b"old"}


def test_space_is_asked_for_in_advance(tmp_path):
    require_space(tmp_path / "not" / "yet" / "there", 0.0)
    with pytest.raises(RunError, match=r"1000000.0 needed; free space"):
        require_space(tmp_path / "not" / "yet" / "there", 1e6)


def test_an_interrupted_write_leaves_the_old_file_and_sweeps_the_dead(tmp_path):
    write_text(tmp_path / "figure.png", "old")
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f".tmp-{dead.pid}-00000000-figure.png").write_text("half")
    living = tmp_path / f".tmp-{os.getpid()}-00000000-figure.png"
    living.write_text("half")
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "figure.png") as temporary:
        assert temporary.suffix == ".png" and temporary.parent == tmp_path
        temporary.write_text("new, half")
        raise KeyboardInterrupt
    assert tree(tmp_path) == {"figure.png": b"old", living.name: b"half"}


# --- JSON and JSON Lines --------------------------------------------------------------------


def test_json_takes_numpy_and_dataclasses_and_nan(tmp_path):
    path = tmp_path / "new" / "claims.json"
    write_json(path, {"a": numpy.float32(0.5), "b": (numpy.int64(3), float("nan")), "c": tmp_path / "ü", "d": True})
    read = json.loads(path.read_text(encoding="utf-8"))
    assert read == {"a": 0.5, "b": [3, None], "c": (tmp_path / "ü").as_posix(), "d": True}
    with pytest.raises(ValueError):
        write_json(path, {"a": float("inf")})
    assert json.loads(path.read_text(encoding="utf-8")) == read


def test_a_torn_last_line_is_cut_off_wherever_it_was_torn(tmp_path):
    rows = [{"step": 1, "text": "a\u2028b\x85c\r"}, {"step": 2, "text": "ü" * 3}]
    path = tmp_path / "log" / "train.jsonl"
    for row in rows:
        append_jsonl(path, row)
    whole = path.read_bytes()
    assert read_jsonl(path) == rows
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        assert read_jsonl(path) == rows[:1], f"cut at byte {cut}"
        append_jsonl(path, rows[1])
        assert path.read_bytes() == whole, f"cut at byte {cut}"
    path.write_bytes(b'{"step": 1, "text": "' + b"x" * 200_000)
    append_jsonl(path, rows[0])
    assert path.read_bytes() == whole[:first]


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RunError, match=r"train.jsonl, line 2: not JSON"):
        read_jsonl(path)


# --- Code version ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        *("import pack.losses", "import pack.losses as losses", "from pack import losses"),
        *("from pack.losses import loss", "from . import losses", "from .losses import loss"),
        "def late():\n    from pack.losses import loss",
    ],
)
def test_code_version_follows_imports_and_nothing_else(tmp_path, statement):
    package = tmp_path / "pack"
    package.mkdir()
    sources = {"trainer": statement, "losses": "from pack import divergences", "divergences": "", "plots": ""}
    for name, text in sources.items():
        (package / f"{name}.py").write_text(text)
    before = code_version(["trainer"], package)
    assert before == code_version(["pack.trainer", "losses"], package)
    (package / "plots.py").write_text("COLOUR = 1")
    assert code_version(["trainer"], package) == before
    for name in ("divergences", "losses", "trainer"):
        (package / f"{name}.py").write_text(sources[name] + "\nX = 1")
        after = code_version(["trainer"], package)
        assert after != before
        before = after


def test_comments_and_docstrings_change_no_code_version(tmp_path):
    package = tmp_path / "pack"
    package.mkdir()
    module, versions = package / "trainer.py", []
    for text in ('"""Old."""\ndef f():\n    """Old."""\n    return 1\n', "# new\ndef f():\n    return 1\n"):
        module.write_text(text)
        versions.append(code_version(["trainer"], package))
    module.write_text("def f():\n    return 2\n")
    assert versions[0] == versions[1] != code_version(["trainer"], package)


def test_a_modules_table_is_part_of_its_code(tmp_path):
    package = tmp_path / "pack"
    package.mkdir()
    (package / "sets.py").write_text("")
    for name in ("sets", "captions"):
        (package / f"{name}.toml").write_text("rows = 1\n")
    before = code_version(["sets"], package)
    (package / "captions.toml").write_text("rows = 2\n")
    (package / "sets.toml").write_text("rows = 1 # as counted\n")
    assert code_version(["sets"], package) == before
    (package / "sets.toml").write_text("rows = 2\n")
    assert code_version(["sets"], package) != before


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the library's sources, to edit."""
    copy = tmp_path_factory.mktemp("edited") / "dphlib"
    shutil.copytree(Path(store.__file__).parents[1], copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def stages_changed(package, module) -> set[str]:
    """The stages that an edit of a module, undone afterwards, would build anew."""
    path = package.joinpath(*module.split(".")).with_suffix(".py")
    before, text = {name: code_version(code, package) for name, code in CODE.items()}, path.read_text()
    path.write_text(f"{text}\nEDITED = 1\n")
    after = {name: code_version(code, package) for name, code in CODE.items()}
    path.write_text(text)
    return {name for name in CODE if before[name] != after[name]}


@pytest.mark.parametrize(
    "module",
    """training.tracking training.memory runtime.jobs runtime.files experiment.store experiment.pipeline stats cli.run
    settings.methods settings.profiles figures.style report.notebooks analysis.claims""".split(),
)
def test_an_edit_that_cannot_change_a_number_keeps_every_stage(package, module):
    assert stages_changed(package, module) == set()


LEARNING = {"train", "cost"}
DRAWING = {"presample", "evaluate", "temperature", *LEARNING}
ANSWERING = {"data", "answers", *DRAWING}
BY_A_POLICY = {"references", *ANSWERING}


@pytest.mark.parametrize(
    ("module", "changed"),
    [
        ("losses", LEARNING),
        ("divergences", LEARNING),
        ("training.loop", LEARNING),
        ("training.step", LEARNING),
        ("experiment.train_run", LEARNING),
        ("experiment.cost", {"cost"}),
        ("experiment.evaluate", {"evaluate", "temperature", *LEARNING}),
        ("experiment.draws", DRAWING),
        ("sampling.transformers", BY_A_POLICY),
        ("verify.sql_rules", ANSWERING),
        ("logprobs", {"base", *BY_A_POLICY}),  # a model that is loaded is compared with it
        ("partition", {"partition", *BY_A_POLICY}),
        ("training.sft", {"base"}),
        ("runtime.machine", {"base", *BY_A_POLICY}),
        ("models.load", {"base", *BY_A_POLICY}),
        ("world.people_places", {"world", "base", "lm world", "lm base", *BY_A_POLICY}),
        ("types", set(CODE)),
    ],
)
def test_an_edit_that_can_change_a_number_builds_what_depends_on_it_anew(package, module, changed):
    assert stages_changed(package, module) == changed


def test_what_is_named_is_there(package):
    for name in NO_NUMBERS:
        path = package.joinpath(*name.split("."))
        assert path.is_dir() or path.with_suffix(".py").is_file()
    with pytest.raises(ValueError, match=r"no module 'trainr' in dphlib; there are: .*types"):
        code_version(["trainr"])


# --- Seeds and machine ----------------------------------------------------------------------


def test_derived_seeds_are_the_same_everywhere_and_apart():
    assert derive_seed("eval", 0, "in_domain") == 2796082568880812985
    seeds = {derive_seed(label, number) for label in "abcdefgh" for number in range(500)}
    assert len(seeds) == 4000 and all(0 <= seed < 2**63 for seed in seeds)


def test_seeding_repeats_every_generator():
    torch = pytest.importorskip("torch")

    def draw():
        return random.random(), numpy.random.rand(), torch.rand(1).item()

    seed_everything(derive_seed("a"))
    first = draw()
    assert draw() != first
    seed_everything(derive_seed("a"))
    assert draw() == first


def test_deterministic_sets_threads_and_kernels():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        deterministic(1)
        assert torch.get_num_threads() == 1 and torch.are_deterministic_algorithms_enabled()
        deterministic(1, "cuda")
        assert not torch.are_deterministic_algorithms_enabled(), "nothing is promised there, and its kernels are slower"
        with pytest.raises(ValueError, match="threads = 0"):
            deterministic(0)
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def shown_by(tmp_path, program: str) -> str:
    """What a new process prints whose environment pins nothing, where importing `kernels` would be an error."""
    (tmp_path / "kernels.py").write_text("raise SystemExit('a kernel would have been fetched')")
    environment = {name: value for name, value in os.environ.items() if name not in PINNED}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "kernel" not in done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif("avx2" not in machine_flags(), reason="this processor has no AVX2")
def test_pinned_kernels_are_avx2s_and_none_is_fetched(tmp_path):
    early = """
        from dphlib.runtime.machine import machine, pin_kernels
        print(pin_kernels())
        import bitsandbytes, torch
        print(torch.backends.cpu.get_cpu_capability(), machine()["instructions"])
    """
    assert shown_by(tmp_path, early) == "True\nAVX2 pinned to AVX2\n"
    late = """
        import os, torch
        from dphlib.runtime.machine import machine, pin_kernels
        print(pin_kernels(), machine()["instructions"], "ATEN_CPU_CAPABILITY" in os.environ)
    """
    assert shown_by(tmp_path, late) == "False not pinned False\n"


# --- Agreement with the reference -----------------------------------------------------------


def test_a_run_says_how_many_of_its_records_equal_the_references(tmp_path, monkeypatch):
    row = {**dict.fromkeys(KEY, 0), "method": "grpo", "correct": 1, "entropy": float("nan")}
    reference = pd.DataFrame([{**row, "problem_id": problem} for problem in range(1000)])
    run = reference.astype({"method": "category"}).query("problem_id < 900").copy()
    run.loc[3, "correct"] = 0
    for folder, frame in (("run", run), ("reference", reference)):
        (tmp_path / folder).mkdir()
        frame.to_parquet(tmp_path / folder / "records.parquet")
    manifest = {"profile": "cpu", "machine": {"cpu": "AMD EPYC"}}
    write_json(tmp_path / "reference" / "manifest.json", manifest)
    monkeypatch.setattr("dphlib.experiment.agreement.pinned", lambda: True)
    for cpu, said in (("AMD Ryzen 9", ""), ("Intel(R) Xeon(R)", "; it was made on AMD, and on another maker's")):
        monkeypatch.setattr("dphlib.experiment.agreement.machine", lambda cpu=cpu: {"cpu": cpu})
        start = f"899 of 900 records equal the reference's{said}"
        assert agreement(tmp_path / "run", "cpu", tmp_path / "reference").startswith(start)
    monkeypatch.undo()
    for name in PINNED:
        monkeypatch.delenv(name, raising=False)
    assert agreement(tmp_path / "run", "cpu", tmp_path / "reference").endswith("agrees with it statistically only")
    assert agreement(tmp_path / "run", "smoke", tmp_path / "reference") == ""


def claim(name: str, verdict: str) -> ClaimResult:
    part = PartResult(name, verdict, "share", 0.1, 0.0, 0.2)
    return ClaimResult(name, "text", "Table 1", verdict, "share", 0.1, 0.0, 0.2, (), (part,), name, "")


def test_a_run_says_how_many_of_its_verdicts_are_the_references(tmp_path):
    runs = {"run": ["supported", "supported", "not supported"], "reference": ["supported", "inconclusive"]}
    for name, verdicts in runs.items():
        told = [claim(f"claim_{i}", verdict) for i, verdict in enumerate(verdicts)]
        write_text(tmp_path / name / "claims.json", to_json(told))
        write_json(tmp_path / name / "manifest.json", {"profile": "cpu"})
    said = "1 of 2 verdicts as in the reference; differs: claim_1 (supported, there inconclusive)"
    asked = tmp_path / "run", "cpu", tmp_path / "reference"
    assert verdict_agreement(*asked) == said
    write_json(tmp_path / "reference/manifest.json", {"profile": "cpu", "asked": {"seeds": "5"}})
    other = "the reference is of ./run_all.sh cpu --seeds 5, this run of ./run_all.sh cpu"
    assert verdict_agreement(*asked) == f"{said}; {other}"
    shutil.copy(tmp_path / "run/claims.json", tmp_path / "reference")
    assert verdict_agreement(*asked) == f"3 of 3 verdicts as in the reference; {other}"
    assert verdict_agreement(tmp_path / "run", "smoke", tmp_path / "reference") == ""
    assert verdict_agreement(tmp_path / "run", "cpu", tmp_path / "nowhere") == ""


# --- Results folder -------------------------------------------------------------------------


def test_run_manifest_notices_every_change(tmp_path):
    stage(tmp_path)
    write_text(tmp_path / "tables" / "passk.csv", "k,pass\n1,0.5\n")
    write_text(tmp_path / "claims.json", "{}")
    store.write_run_manifest(tmp_path, {"seeds": [0, 1], "seconds": {"train": 12.5}})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert list(manifest["files"]) == ["claims.json", "tables/passk.csv"]
    assert manifest["seeds"] == [0, 1] and manifest["seconds"] == {"train": 12.5} and manifest["peak_gib"] > 0
    assert store.verify_run_manifest(tmp_path) == []
    flip(tmp_path / "tables" / "passk.csv")
    (tmp_path / "claims.json").unlink()
    write_text(tmp_path / "figures" / "new.svg", "")
    problems = store.verify_run_manifest(tmp_path)
    assert [problem.split()[0] for problem in problems] == ["claims.json", "tables/passk.csv", "figures/new.svg"]
    (tmp_path / "manifest.json").unlink()
    assert store.verify_run_manifest(tmp_path) == ["manifest.json is missing"]
    with pytest.raises(ValueError, match="versions"):
        store.write_run_manifest(tmp_path, {"versions": {}})


def test_a_copied_run_keeps_the_machine_and_memory_of_the_run(tmp_path):
    (tmp_path / "table.csv").write_text("a\n1\n")
    of_run = {"versions": {"torch": "0"}, "machine": {"cpu": "another"}, "peak_gib": 7.5, "peak_gib_largest_child": 9.0}
    store.write_run_manifest(tmp_path, {"profile": "cpu"}, of_run)
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert {name: written[name] for name in of_run} == of_run
    assert store.verify_run_manifest(tmp_path) == []
