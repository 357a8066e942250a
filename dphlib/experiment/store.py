"""Run folder: stages addressed by content, manifest last, lock, resume; the manifest of a results folder.

A stage is built into a temporary folder, its manifest (size and sha256 of each file) is written last, then
the folder is renamed into place: what carries its final name is whole. Its key hashes everything that may
change the output: name, parameters, content of the inputs, sources that make its numbers, library versions.

    run = open_run(Path("artifacts/cpu"), "cpu")
    base = run.stage("base", params={"steps": 800}, code=["training.sft"], build=train_base)
    policy = run.stage("policy", params={"seed": 0}, inputs=[base], code=["training.loop"], build=train_policy)

Limits: Linux and macOS. The lock is the file system's (`flock`): machines that share a folder over a network
are kept apart only where that file system locks. Versions of Python and SQLite are recorded, not in the key.
Sources are read from disk: after an edit of `dphlib`, restart a notebook's kernel before building with it.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dphlib.runtime.files import (
    RunError,
    clear_errors,
    damage,
    digest,
    fsync,
    inventory,
    make_folder,
    read_manifest,
    say,
    table_beside,
    write_manifest,
)
from dphlib.runtime.machine import KEY_PACKAGES, machine, package_version, peak_gib, versions
from dphlib.runtime.progress import announce

_QUIET_S = 2.0  # how long one waits for a lock before a message says so
_verified: dict[Path, tuple[bytes, dict[str, Any]]] = {}
"""Manifests, as bytes and read, of the stages whose files this process has already hashed."""


# --- Stage keys ----------------------------------------------------------------------------------


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The tree and every statement in it, at any depth, without the expressions that `ast.walk` visits too."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        yield (node := waiting.pop())
        for block in ("body", "handlers", "orelse", "finalbody", "cases"):
            waiting += getattr(node, block, ())


@cache
def _read_source(source: str, package: str) -> tuple[str, frozenset[str]]:
    """The sha256 of a source's syntax tree without docstrings: what changes in it may change a result; and what it
    imports from the package, modules or not, wherever in it the import is. Each text is parsed once.
    """
    tree, names = ast.parse(source), set[str]()
    for node in _statements(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
            continue
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = f"{package}.{node.module or ''}".rstrip(".") if node.level else str(node.module)
            dotted = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        names |= {name.removeprefix(f"{package}.") for name in dotted if name.startswith(f"{package}.")}
    return digest(ast.dump(tree)), frozenset(names)


def _dotted(path: Path) -> str:
    """`training/loop.py` -> `training.loop`, `verify/__init__.py` -> `verify`."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and parts[:-1] else parts)


@cache
def _once(lookup: Callable[[str], str | None], package: str) -> str | None:
    """A package's version, looked up once: it does not change while a process runs."""
    return lookup(package)


NO_NUMBERS = {
    "settings": "every value that a stage uses is among its parameters",
    "experiment.pipeline": "wires stages together; what each computes is elsewhere",
    "experiment.store": "keeps stages",
    "runtime.files": "writes, reads and checks files",
    "runtime.child": "starts and ends processes",
    "runtime.jobs": "runs jobs side by side, each from the same random state",
    "runtime.progress": "shows how far a loop is",
    "training.memory": "says what to change where memory is full",
    "training.tracking": "copies the log elsewhere",
}
"""Modules and rooms that cannot change a number of any stage, and why: an edit there keeps every stage."""


def code_version(modules: Sequence[str] | None, package: Path = Path(__file__).parents[1]) -> str:
    """sha256 over the code that makes a stage's numbers: the named modules and those that they import, transitively.

    An edit of a figure, of a comment, of a docstring or of a module in `NO_NUMBERS` invalidates no stage. A module's
    table (`sets.toml` beside `sets.py`) is part of it. Imports by a string are not seen: name those modules too.
    `training.loop` and `dphlib.training.loop` mean the same. None means all modules, those of `NO_NUMBERS` too; an
    empty sequence means no code, for what is copied. ValueError for an unknown module.
    """
    there = {_dotted(path.relative_to(package)): path for path in package.rglob("*.py")}
    waiting = [name.removeprefix(f"{package.name}.") for name in (there if modules is None else modules)]
    sources: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        if name in sources or (modules and not {name, name.partition(".")[0]}.isdisjoint(NO_NUMBERS)):
            continue
        if name not in there:
            raise ValueError(f"no module {name!r} in {package.name}; there are: {', '.join(sorted(there))}")
        sources[name], named = _read_source(there[name].read_text(encoding="utf-8"), package.name)
        if there[name].with_suffix(".toml").is_file():
            sources[f"{name}.toml"] = digest(table_beside(str(there[name])))
        waiting.extend(named & there.keys())
    return digest(sources)


# --- Stages --------------------------------------------------------------------------------------


class NotBuilt(RunError):
    """A stage that was only looked for is not there."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A finished stage: folder, key, hash of its files, whether it was found."""

    name: str
    path: Path
    key: str
    content_hash: str
    reused: bool


def _files(folder: Path) -> list[Path]:
    """Files below a folder in a fixed order, without those whose name begins with a dot."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    visible = [path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts)]
    return sorted(visible, key=lambda path: path.relative_to(folder).as_posix())


def work_folder(building: Path) -> Path:
    """A folder for checkpoints that survives an interrupted build, so that the next build can resume from it.

    Belongs to the stage that is built in `building`; removed when that stage is finished.
    """
    folder = building.with_name(building.name.replace(".building-", ".work-", 1))
    with clear_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@dataclass(frozen=True, slots=True)
class Run:
    """An open run folder."""

    root: Path
    profile_name: str

    def stage(
        self,
        name: str,
        *,
        params: Mapping[str, Any],
        inputs: Sequence[Stage] = (),
        code: Sequence[str],
        build: Callable[[Path], None] | None,
    ) -> Stage:
        """The finished stage, found whole or built now. One process builds it, another one waits.

        Args:
            name: letters, digits and `_ . = -`; part of the folder's name.
            params: all that the output depends on and that is neither input nor code; JSON or dataclasses.
            inputs: stages whose files the build reads; their content counts, not the way it came about.
            code: modules of `dphlib` that make its numbers (see `code_version`).
            build: writes the output into the empty folder it is given; None raises `NotBuilt` where it is not there.

        Raises `NotBuilt` when it is not there and `build` is None, `RunError` when the disk is full, a file may
        not be written, or the build wrote nothing. What the build itself raises passes unchanged, and its
        half-written output is removed.
        """
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.=-]*", name):
            raise ValueError(f"stage name {name!r}: letters, digits and _ . = - are allowed")
        recipe = {
            "name": name,
            "params": dict(params),
            "inputs": [[stage.name, stage.content_hash] for stage in inputs],
            "code": code_version(code),
            "versions": {package: _once(package_version, package) for package in KEY_PACKAGES},
        }
        label = f"{name}-{(key := digest(recipe))[:16]}"
        folder, building = (self.root / "stages" / part for part in (label, f".building-{label}"))
        with clear_errors(folder), _lock(folder, wait=True):
            manifest = _whole(folder, key)
            reused = bool(manifest)
            if not reused and build is None:
                raise NotBuilt(f"stage {name} is not built yet")
            if not reused:
                announce(f"{name}: building")
                manifest = self._build(recipe, key, build, folder, building)  # type: ignore[arg-type]
            shutil.rmtree(folder.with_name(f".work-{label}"), ignore_errors=True)
        return Stage(name, folder, key, manifest["content"], reused)

    def _build(
        self, recipe: dict[str, Any], key: str, build: Callable[[Path], None], folder: Path, building: Path
    ) -> dict[str, Any]:
        if building.exists():  # its builder is dead, for the lock is ours
            shutil.rmtree(building)
        building.mkdir()
        try:
            started = time.monotonic()
            build(building)
            wall_s = round(time.monotonic() - started, 3)
            files = _files(building)
            if not files or building / "manifest.json" in files:
                raise RunError(f"stage {recipe['name']}: the build must write a file, none manifest.json")
            for path in files:
                fsync(path)
            manifest = {**recipe, "key": key, "profile": self.profile_name}
            manifest |= {"files": (found := inventory(building, files)), "wall_s": wall_s}
            manifest["content"] = digest([[name, entry["sha256"]] for name, entry in sorted(found.items())])
            manifest |= {"peak_gib": round(peak_gib(), 3), "versions": versions(), "machine": machine()}
            manifest = write_manifest(building, manifest)
            os.rename(building, folder)
            fsync(folder.parent)
            return manifest
        finally:
            shutil.rmtree(building, ignore_errors=True)


def _whole(folder: Path, key: str) -> dict[str, Any]:
    """The manifest of a stage whose files agree with it, {} when there is none. Damage is moved aside."""
    if not folder.exists():
        return {}
    place, problem = folder.absolute(), ""
    text = path.read_bytes() if (path := folder / "manifest.json").is_file() else b""
    known, manifest = _verified.get(place, (b"", {}))
    if not known or text != known:
        known = b""
        manifest, problem = read_manifest(folder)
    if not problem and manifest["key"] != key:
        problem = f"manifest.json belongs to another stage ({manifest['name']}, key {manifest['key']})"
    if not problem:
        problem = "; ".join(damage(folder, manifest["files"], hashed=not known))
    if not problem:
        _verified[place] = (text, manifest)
        return manifest
    _verified.pop(place, None)
    number = 1
    while (aside := folder.with_name(f"{folder.name}.damaged-{number}")).exists():
        number += 1
    os.rename(folder, aside)
    say(f"{folder}: {problem}; moved aside to {aside.name}, the stage is built again")
    return {}


@contextmanager
def _lock(folder: Path, *, wait: bool) -> Iterator[None]:
    """Holds a stage's lock. The kernel frees it when its process dies, so a lock is never stale.

    Whoever only looks at a finished stage holds it too, for less than a second: such a wait is not mentioned.
    """
    lock = FileLock(folder.with_name(f".lock-{folder.name}"), fallback_to_soft=False)
    try:
        lock.acquire(timeout=_QUIET_S if wait else 0)
    except Timeout:
        if not wait:
            raise
        say(f"{folder.name}: another process is building this stage; waiting for it (Ctrl-C stops waiting)")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def open_run(root: Path, profile_name: str) -> Run:
    """Opens a run folder, makes it where needed, and removes what dead builders left half-written in it."""
    root = Path(root)
    with clear_errors(root):
        make_folder(root / "stages")
        for building in (root / "stages").glob(".building-*"):
            try:
                with _lock(building.with_name(building.name.removeprefix(".building-")), wait=False):
                    shutil.rmtree(building, ignore_errors=True)
            except Timeout:
                continue  # its builder lives
    return Run(root, profile_name)


# --- Results folder ------------------------------------------------------------------------------


def _results(root: Path) -> list[Path]:
    skipped = {"stages", "manifest.json"}
    return [path for path in _files(root) if path.relative_to(root).parts[0] not in skipped]


def write_run_manifest(root: Path, extra: Mapping[str, Any], of_run: Mapping[str, Any] | None = None) -> Path:
    """Writes `manifest.json` of a results folder: each file's size and sha256, and what made them.

    The stages are left out: they have manifests of their own. To be called last. `extra`
    adds what only the caller knows: `seeds`, `seconds`, profile, stages reused. `of_run` is the manifest of the run
    that these results were copied from: versions, machine and memory are then that run's, not this process's.
    Raises ValueError when it names an entry that is measured here.
    """
    measured = {
        "versions": versions(),
        "machine": machine(),
        "peak_gib": round(peak_gib(), 3),
        "peak_gib_largest_child": round(peak_gib(children=True), 3),
    }
    if of_run is not None:
        measured = {name: of_run[name] for name in measured}
    measured["files"] = inventory(root, _results(root))
    if taken := sorted({*measured, "sha256"} & set(extra)):
        raise ValueError(f"extra may not name {', '.join(taken)}: measured here")
    write_manifest(root, {**extra, **measured})
    return root / "manifest.json"


def verify_run_manifest(root: Path) -> list[str]:
    """What in a results folder disagrees with its `manifest.json`, a line each; [] when nothing does."""
    manifest, problem = read_manifest(root)
    if problem:
        return [problem]
    unlisted = [path.relative_to(root).as_posix() for path in _results(root)]
    extra = [f"{name} is not in the manifest" for name in unlisted if name not in manifest["files"]]
    return damage(root, manifest["files"]) + extra
