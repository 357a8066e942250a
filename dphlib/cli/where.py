"""The command `dph where`: the folders of a run, so that a program need not know their names, which hold hashes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

import tyro

from dphlib.cli.arguments import ProfileArgument
from dphlib.experiment.pipeline import Pipeline
from dphlib.experiment.store import NotBuilt
from dphlib.integrations import store as stores
from dphlib.runtime.files import MissingFileError
from dphlib.runtime.places import ARTIFACTS
from dphlib.settings.environment import profile_from_environment
from dphlib.settings.profiles import Profile

Place = Literal["base", "partition", "store", "databases"]


def where(
    what: tyro.conf.Positional[Place], profile_name: ProfileArgument = "cpu", artifacts: Path = ARTIFACTS, seed: int = 0
) -> int:
    """Prints the folder of a part of a run that is there, for a script to read. Starts and downloads nothing.

    Args:
        what: base, the initial policy with its tokenizer; partition, that of the training problems; databases, of the
            problems; store, what `dph partition --export` wrote to `<artifacts>/<profile_name>-store`.
        artifacts: folder of the runs.
        seed: of the runs that read it: it decides the base and the partition.
    """
    settings = profile_from_environment(profile_name)
    name = settings.name
    root, folder = artifacts / name, artifacts / f"{name}-store"
    makes = ["dph", "partition" if what in ("partition", "store") else "presample", "--profile", name]
    if artifacts != ARTIFACTS:
        makes += ["--artifacts", str(artifacts)]
    if seed:
        makes += ["--seed", str(seed)]
    try:
        if what == "store":
            makes += ["--export", str(folder)]
            if not (folder / stores.HEAD).is_file():
                raise NotBuilt(f"no store in {folder}")
        else:
            folder = _folder(what, root, settings, seed)
    except NotBuilt:
        raise MissingFileError(f"no {what} of profile {name} in {artifacts}: `{shlex.join(makes)}` makes it") from None
    print(folder)
    return 0


def _folder(what: Place, root: Path, settings: Profile, seed: int) -> Path:
    """A folder of the run in `root`; NotBuilt where it is not there."""
    if not (root / "stages").is_dir():
        raise NotBuilt(f"no run in {root}")
    pipeline = Pipeline(root, settings).looking()
    if what == "databases":
        return pipeline.databases()
    if what == "partition":
        return pipeline.partition(seed=seed).path
    if (base := settings.base) is None or not base.revision:
        return pipeline.base_folder(settings.base_index(seed))
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(base.name, revision=base.revision, local_files_only=True))
    except errors.LocalEntryNotFoundError:
        raise NotBuilt(f"{base.name} is not in the cache of the hub") from None
