"""A folder's `manifest.json`: size and sha256 of its files, guarded by a sha256 of its own.

What is written last tells whether the rest is whole. Where folders lie and who may write them: see `runs`,
`checkpoints`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dphlib.runtime.files import digest, plain, sha256_file, write_json


def inventory(folder: Path, files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Size and sha256 of each file, by its path below the folder."""
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256_file(path)}
        for path in files
    }


def damage(folder: Path, files: Mapping[str, Mapping[str, Any]], *, hashed: bool = True) -> list[str]:
    """What is wrong with a folder's files, a line each that begins with the file's name."""
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
