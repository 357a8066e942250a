"""The bases that are shipped for the CPU world: trained once, kept with their hashes, used where the settings fit.

    artifacts/bases/bases.json            what made each base, the sha256 of its weights, its loss
    artifacts/bases/tokenizer.json, ...   what all of them share
    artifacts/bases/3/model.safetensors   the weights of base 3

A base that is trained on another processor differs in its last digits after the first step, and is another base at the
end; the shipped ones let runs on different machines start from the same policies.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from dphlib.experiment.store import code_version
from dphlib.runtime.files import RunError, damage, digest, inventory, make_folder, say, write_json
from dphlib.runtime.machine import versions
from dphlib.runtime.places import ARTIFACTS
from dphlib.runtime.progress import Progress
from dphlib.settings.environment import RETRAIN
from dphlib.settings.profiles import Profile
from dphlib.world.people_places import corpus

LIST, WEIGHTS, LOG = "bases.json", "model.safetensors", "sft_log.json"
LOG_EVERY = 25
"""Steps whose mean loss is one entry of a shipped base's log."""
MODULES = ("training.sft", "models.load")
"""The modules that train a base."""
_PAIRS = 2_000
_RETRAIN = f"run again with --retrain-base (in a notebook: the environment's {RETRAIN}=1), which trains the bases here"


def folder_of(settings: Profile) -> Path | None:
    """Where a profile's shipped bases are; None where each base is trained."""
    return ARTIFACTS / settings.shipped if settings.small and settings.shipped else None


def listed(settings: Profile) -> str:
    """`bases.json` of a profile as it is; "" where each base is trained."""
    folder = folder_of(settings)
    return (folder / LIST).read_text(encoding="utf-8") if folder and (folder / LIST).is_file() else ""


def recipe(settings: Profile, index: int) -> str:
    """Digest of what makes a base: the corpus that it learns, by its first answers, model and fine-tuning.

    The world's settings are in the corpus as far as the base has seen them; how many problems there are is not.
    """
    config = settings.sft_config(index)
    pairs = list(islice(corpus(settings.world, random.Random(f"sft-{config.seed}")), _PAIRS))
    return digest({"model": settings.model, "sft": config, "corpus": pairs})


@dataclass(frozen=True, slots=True)
class Shipped:
    """A base that is shipped.

    Args:
        folder: of all bases.
        files: name below the folder -> size and sha256.
        log: what `sft_log.json` holds.
    """

    folder: Path
    files: Mapping[str, Mapping[str, Any]]
    log: Mapping[str, Any]

    def copy(self, out: Path) -> None:
        """Copies it to `out`, a model folder in the Hugging Face layout, with `sft_log.json`.

        Raises:
            RunError: a file is missing, or has other bytes than when it was shipped.
        """
        if wrong := damage(self.folder, self.files):
            raise RunError(f"{self.folder}/{wrong[0]}; restore it from the repository, or {_RETRAIN}")
        for name in self.files:
            shutil.copyfile(self.folder / name, out / Path(name).name)
        write_json(out / LOG, self.log)


def shipped(settings: Profile, index: int) -> Shipped | None:
    """The shipped base with an index; None where there is none, so that it is trained.

    Raises:
        RunError: the base was made from another world, model or fine-tuning, or `bases.json` is damaged.
    """
    folder = folder_of(settings)
    if folder is None or not (folder / LIST).is_file():
        return None
    listed = _read(folder)
    if (entry := listed["bases"].get(str(index))) is None:
        return None
    if entry["recipe"] != recipe(settings, index):
        raise RunError(
            f"{folder / LIST}: base {index} was made from another world, model or fine-tuning than those of profile "
            f"{settings.name}; {_RETRAIN}"
        )
    return Shipped(folder, listed["shared"] | entry["files"], entry["log"])


def make(settings: Profile, folder: Path, on_trained: Callable[[int], None] = lambda index: None) -> None:
    """Trains the profile's bases and writes them to `folder`; those that are there, whole and of this recipe, are kept.

    An interrupted call goes on from the last base that was finished.

    Args:
        on_trained: called with the index of each base once it is written.
    """
    from dphlib.training import sft

    make_folder(folder)
    for left in folder.glob(".building-*"):
        shutil.rmtree(left)
    kept = _kept(settings, folder)
    for index in range(settings.bases):
        if str(index) in kept:
            say(f"base {index}: kept")
            continue
        with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as building:
            made, config = Path(building), settings.sft_config(index)
            with Progress(f"base {index}", config.steps, "steps") as progress:
                sft.build(made, settings.world, settings.model, config, lambda step, loss: progress.update(step))
            log = json.loads((made / LOG).read_text(encoding="utf-8"))
            parts = [log["loss"][start : start + LOG_EVERY] for start in range(0, len(log["loss"]), LOG_EVERY)]
            log |= {"loss": [round(fmean(part), 4) for part in parts], "every": LOG_EVERY}
            (made / LOG).unlink()
            weights = folder / str(index) / WEIGHTS
            weights.parent.mkdir(exist_ok=True)
            (made / WEIGHTS).replace(weights)
            shared = [path.replace(folder / path.name) for path in sorted(made.iterdir())]
        kept[str(index)] = {
            "recipe": recipe(settings, index),
            "files": inventory(folder, [weights]),
            "code": code_version(MODULES),
            "versions": versions(),
            "log": log,
        }
        write_json(folder / LIST, {"bases": kept, "shared": inventory(folder, shared)})
        on_trained(index)


def _kept(settings: Profile, folder: Path) -> dict[str, Any]:
    """The entries of those bases in a folder that are whole and of the profile's recipe."""
    if not (folder / LIST).is_file():
        return {}
    listed = _read(folder)
    if damage(folder, listed["shared"]):
        return {}
    return {
        name: entry
        for name, entry in listed["bases"].items()
        if entry["recipe"] == recipe(settings, int(name)) and not damage(folder, entry["files"])
    }


def _read(folder: Path) -> Mapping[str, Any]:
    try:
        listed = json.loads((folder / LIST).read_text(encoding="utf-8"))
        return {"bases": dict(listed["bases"]), "shared": dict(listed["shared"])}
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{folder / LIST} cannot be read ({error!r}); restore it from the repository, or {_RETRAIN}"
        ) from error
