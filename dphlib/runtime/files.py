"""Files that are whole or absent: atomic writes, JSON, JSON Lines, manifests, and errors that name the way out.

A folder's `manifest.json` holds size and sha256 of its files and is guarded by a sha256 of its own. It is written last,
so it shows whether the rest is whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


class UserError(Exception):
    """An error that the user can mend. The command line prints it as one line, any other one with its traceback."""


class RunError(UserError, RuntimeError):
    """A run cannot go on: the message names the file and the way out."""


class InputError(UserError, ValueError):
    """A name, value or file of the user's is refused: the message names it, what is allowed, and the way out."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user has to provide is not there: the message says where it belongs."""


def meant(name: str, known: Iterable[str]) -> str:
    """The end of an error on a name that may be misspelt, "" where no known one is near.

    >>> meant("grpo-dexp", ["grpo", "grpo_dexp"]), meant("ppo2", ["dapo"])
    ('; did you mean grpo_dexp?', '')
    """
    close = get_close_matches(name.lower(), list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is none of the known ones; `kind` says what it names.

    >>> str(unknown("profile", "cup", ["smoke", "cpu"]))
    "unknown profile 'cup'; known: smoke, cpu; did you mean cpu?"
    """
    names = list(known)
    return InputError(f"unknown {kind} {name!r}; known: {', '.join(names)}{meant(name, names)}")


def say(line: str) -> None:
    """One line to the person at the terminal or the notebook."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """Turns a full disk and a missing permission into `RunError`; any other error passes unchanged.

    Some writers (safetensors) raise an error of their own for a full disk, hence the look at its text.
    """
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        code, name = getattr(error, "errno", None), getattr(error, "filename", None) or path
        if code in _FULL or "No space left on device" in str(error):
            way_out = "free space (or raise the file-size limit) and run again; what is finished is kept"
        elif isinstance(error, OSError) and code in _DENIED:
            way_out = "make it readable and writable for this user, or choose another folder, and run again"
        else:
            raise
        raise RunError(f"{name}: {error}; {way_out}") from error


def make_folder(folder: Path) -> None:
    """Makes the folder that long work will fill, before that work. Raises `RunError` when it cannot be made."""
    try:
        with clear_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: {error.strerror}; choose another folder") from error


def require_space(path: Path, gib: float) -> None:
    """Raises `RunError` when fewer than `gib` GiB are free on the disk of `path`, which may not exist yet."""
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free / 2**30
    if free < gib:
        raise RunError(f"{path}: {free:.1f} GiB free, {gib:.1f} needed; free space or choose another folder")


def plain(value: Any) -> Any:
    """Dataclasses, tuples, paths, numpy scalars as plain JSON values; NaN, which JSON lacks, as null."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    elif not isinstance(value, (str, int, float)) and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, Path):
        return value.as_posix()
    return None if isinstance(value, float) and math.isnan(value) else value


def _canonical(value: Any) -> bytes:
    """One byte string for equal values: sorted keys, no spaces. Raises for what is not JSON."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(value: Any) -> str:
    return hashlib.sha256(_canonical(value)).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it exists and belongs to somebody else
    return True


@contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`, same suffix; at the end synced and renamed to `path`, or removed.

    A reader sees the old file or the new one, never a part. Left-overs of dead writers of `path` are removed.
    `durable=False` leaves out the sync. Raises `RunError` for a full disk or a missing permission.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    with clear_errors(path):
        make_folder(path.parent)
        for stale in path.parent.glob(".tmp-*"):
            parts = stale.name.split("-", 3)
            if len(parts) == 4 and parts[3] == path.name and parts[1].isdigit() and not _alive(int(parts[1])):
                stale.unlink(missing_ok=True)
        try:
            yield temporary
            if durable:
                fsync(temporary)
            os.replace(temporary, path)
            if durable:
                fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Writes UTF-8 text atomically (see `atomic_path`), line ends as given."""
    with atomic_path(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, obj: Any, *, durable: bool = True) -> None:
    """Writes JSON atomically: indented, keys in the given order; NaN as null, infinity is a ValueError."""
    text = json.dumps(plain(obj), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text, durable=durable)


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Appends one row and syncs it; first cuts off a torn last line, left by a killed writer."""
    line = json.dumps(plain(row), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    with clear_errors(path):
        make_folder(path.parent)
        path.touch()
        with open(path, "r+b") as file:
            end = file.seek(0, os.SEEK_END)
            while end:  # back to the last newline, a block at a time
                start = max(0, end - 65536)
                file.seek(start)
                found = file.read(end - start).rfind(b"\n")
                end = start + found + 1 if found >= 0 else start
                if found >= 0:
                    break
            if end < file.seek(0, os.SEEK_END):
                say(f"{path}: cut off a torn last line")
                file.truncate(end)
            file.seek(end)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file. A row counts once its newline is there, so a torn last line is left out.

    Split on "\\n" alone: `str.splitlines` also cuts at U+2028, which may stand inside a JSON string.
    Raises `RunError` naming file and line when a whole line is not JSON.
    """
    with clear_errors(path):
        lines = path.read_bytes().split(b"\n")[:-1]
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise RunError(f"{path}, line {number}: not JSON ({error}); remove it and run again") from error
    return rows


def table_beside(module: str) -> dict[str, Any]:
    """The table in the TOML file beside a module, whose `__file__` is given: `sets.toml` of `sets.py`."""
    return tomllib.loads(Path(module).with_suffix(".toml").read_text(encoding="utf-8"))


# --- Manifests -----------------------------------------------------------------------------------


def inventory(folder: Path, files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Size and sha256 of each file, by its path below the folder."""
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256_file(path)}
        for path in files
    }


def damage(folder: Path, files: Mapping[str, Mapping[str, Any]], *, hashed: bool = True) -> list[str]:
    """What is wrong with a folder's files, one line each that begins with the file's name."""
    wrong = []
    for name, entry in files.items():
        path = os.path.join(folder, name)  # no Path: a world of five hundred files is looked at hundreds of times
        if not os.path.isfile(path):
            wrong.append(f"{name} is missing")
        elif (size := os.path.getsize(path)) != entry["size"]:
            wrong.append(f"{name} has {size} bytes, its manifest says {entry['size']}")
        elif hashed and sha256_file(Path(path)) != entry["sha256"]:
            wrong.append(f"{name} has other bytes than its manifest says (sha256)")
    return wrong


def read_manifest(folder: Path) -> tuple[dict[str, Any], str]:
    """A folder's manifest and "", or {} and what is wrong with it. Its own sha256 guards it."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        stated = manifest.pop("sha256")
        if stated == digest(manifest):
            return manifest, ""
    except FileNotFoundError:
        return {}, "manifest.json is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return {}, "manifest.json is damaged"


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Writes `manifest.json` with its own sha256; returns the manifest as plain JSON values."""
    manifest = plain(manifest)
    write_json(folder / "manifest.json", {**manifest, "sha256": digest(manifest)})
    return manifest  # type: ignore[return-value]
