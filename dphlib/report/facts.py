"""Facts of a results folder as a reader sees them: claims, minutes, command, machine, memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dphlib.analysis.claims import ClaimResult, from_json
from dphlib.runtime.files import RunError


def read_json(path: Path) -> Any:
    """A JSON file's content; `RunError` naming it where it is absent or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{path} is not there; ./run_all.sh writes it") from None
    except ValueError as error:
        raise RunError(f"{path}: not JSON ({error}); remove it and run again") from error


def read_claims(run_root: Path) -> list[ClaimResult]:
    """The claims of a results folder; `RunError` naming their file where it is absent or not JSON."""
    path = Path(run_root) / "claims.json"
    read_json(path)
    return from_json(path.read_text(encoding="utf-8"))


def minutes(manifest: dict[str, Any]) -> dict[str, float]:
    """Minutes of each notebook from the manifest's `seconds`, a mapping of notebook name to seconds."""
    seconds = manifest.get("seconds", {})
    if not isinstance(seconds, dict):
        raise RunError(f"manifest.json: `seconds` is {seconds!r}, a mapping of notebook name to seconds is needed")
    return {name: value / 60 for name, value in seconds.items()}


def minutes_text(manifest: dict[str, Any]) -> str:
    """Minutes of each part of a run, a line each, and the command that they are of.

    >>> print(minutes_text({"profile": "cpu", "seconds": {"set-up": 30, "00_kick_the_tires": 600}}))
    minutes by part, of ./run_all.sh cpu:
      set-up              0.5
      00_kick_the_tires  10.0
    """
    parts = minutes(manifest)
    width = max(map(len, parts), default=0)
    lines = (f"  {name:<{width}}  {value:4.1f}" for name, value in parts.items())
    return "\n".join([f"minutes by part, of {command_text(manifest)}:", *lines])


def command_text(manifest: dict[str, Any]) -> str:
    """The command that made a run, as the manifest has it.

    >>> command_text({"profile": "cpu", "asked": {"seeds": "5", "study_seeds": "3"}})
    './run_all.sh cpu --seeds 5 --study-seeds 3'
    """
    asked = manifest.get("asked", {})
    return " ".join(["./run_all.sh", manifest["profile"], *(f"--{k.replace('_', '-')} {v}" for k, v in asked.items())])


def machine_text(manifest: dict[str, Any]) -> str:
    """The machine in one line, as the manifest has it."""
    machine = manifest["machine"]
    gpus = f", {', '.join(machine['gpus'])}" if machine.get("gpus") else ", no GPU used"
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB memory{gpus}, {machine['os']}"


def peak_text(manifest: dict[str, Any]) -> str:
    """Peak resident memory of one process, the larger of the main one's and its largest child's."""
    return f"{max(manifest['peak_gib'], manifest.get('peak_gib_largest_child', 0.0)):.1f} GiB"
