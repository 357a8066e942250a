"""Checkpoints within a run: what is trained, the optimizer, random states, data order; whole or not there.

    kept = Checkpoints(folder, recipe)
    logs = kept.restore(policy, optimizer, cycles)     # [] at the beginning
    kept.log(row)                                      # one row per iteration, into train_log.jsonl
    kept.save(iteration, policy, optimizer, cycles)

A checkpoint is a folder `step-000020`: `weights.safetensors` (what requires a gradient), `state.safetensors` and
`state.json` (all else), `manifest.json` with the sha256 of each. It is written beside, synced, renamed; the two newest
are kept. A damaged one is reported and the one before is used. On a CPU in fp32 a resumed run equals an uninterrupted
one to the last bit; with paged 8-bit moments and on GPUs it goes on from equal numbers.

Not here: frozen weights, which the base has; stages and their locks, see `experiment.store`.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dphlib.rivals import ReviewQueue
from dphlib.runtime.files import (
    RunError,
    append_jsonl,
    clear_errors,
    damage,
    digest,
    fsync,
    inventory,
    plain,
    read_jsonl,
    read_manifest,
    say,
    write_manifest,
    write_text,
)
from dphlib.training.rows import Cycle

KEPT = 2
"""Checkpoints that are kept, so that one damaged file does not cost the run."""
LOG = "train_log.jsonl"
_WEIGHTS, _STATE, _TREE = "weights.safetensors", "state.safetensors", "state.json"


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints and the log of one run.

    Args:
        folder: theirs alone.
        recipe: what decides the run's numbers, plain data; a checkpoint of another recipe is refused.
    """

    folder: Path
    recipe: Mapping[str, Any]

    def save(
        self, iteration: int, policy: Any, optimizer: torch.optim.Optimizer, cycles: Mapping[str, Cycle | ReviewQueue]
    ) -> None:
        """Writes the state after `iteration`, and removes all but the newest checkpoints.

        Raises:
            RunError: the disk is full or may not be written.
        """
        target = self.folder / f"step-{iteration:06}"
        temporary = self.folder / f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{target.name}"
        state = {
            "iteration": iteration,
            "optimizer": optimizer.state_dict(),
            "random": _random_states(),
            "cycles": {name: cycle.state() for name, cycle in cycles.items()},
        }
        tensors: dict[str, Tensor] = {}
        tree = _packed(state, tensors, "state")
        weights = {name: _copied(weight) for name, weight in _trained(policy).items()}
        with clear_errors(target):
            temporary.mkdir(parents=True)
            try:
                save_file(weights, temporary / _WEIGHTS)
                save_file(tensors, temporary / _STATE)
                write_text(temporary / _TREE, json.dumps(tree, allow_nan=False))
                files = [temporary / name for name in (_WEIGHTS, _STATE, _TREE)]
                for file in files:
                    fsync(file)
                write_manifest(temporary, {"recipe": self.recipe, "files": inventory(temporary, files)})
                shutil.rmtree(target, ignore_errors=True)  # a damaged one, that an older one went on from
                os.rename(temporary, target)
                fsync(self.folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        for old in self._steps()[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def restore(
        self, policy: Any, optimizer: torch.optim.Optimizer, cycles: Mapping[str, Cycle | ReviewQueue]
    ) -> list[dict[str, Any]]:
        """Puts the newest whole checkpoint into policy, optimizer, cycles and random states.

        Returns:
            The log's rows up to it; [] where there is no checkpoint and training begins.

        Raises:
            RunError: checkpoints that are all damaged, of another recipe, of another policy, or without their log.
        """
        for left in self.folder.glob(".tmp-*-step-*"):
            shutil.rmtree(left, ignore_errors=True)
        step = self._newest_whole()
        if step is None:
            (self.folder / LOG).unlink(missing_ok=True)
            return []
        tree = json.loads((step / _TREE).read_text(encoding="utf-8"))
        state = _unpacked(tree, load_file(step / _STATE))
        _put_weights(policy, load_file(step / _WEIGHTS), step)
        _put_optimizer(policy, optimizer, state["optimizer"])
        for name, cycle in cycles.items():
            cycle.restore(state["cycles"][name])
        _put_random_states(state["random"])
        say(f"training goes on after iteration {state['iteration']}, from {step}")
        return self._cut_log(state["iteration"])

    def log(self, row: Mapping[str, Any]) -> None:
        """Appends a row to the log and syncs it."""
        append_jsonl(self.folder / LOG, row)

    def _steps(self) -> list[Path]:
        """Checkpoints, the newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)

    def _newest_whole(self) -> Path | None:
        """The newest checkpoint without damage; None where there is no checkpoint at all."""
        problems = []  # type: ignore[var-annotated]
        for step in self._steps():
            manifest, problem = read_manifest(step)
            problem = problem or "; ".join(damage(step, manifest["files"]))
            if not problem:
                for line in problems:
                    say(f"{line}; the checkpoint before it is used")
                self._refuse_another(manifest["recipe"], step)
                return step
            problems.append(f"{step} is damaged: {problem}")
        if problems:
            raise RunError(f"{'; '.join(problems)}; no whole one is left: remove {self.folder} to train from the start")
        return None

    def _refuse_another(self, recipe: Mapping[str, Any], step: Path) -> None:
        ours = plain(self.recipe)
        if digest(recipe) != digest(ours):
            differ = [name for name in {**ours, **recipe} if ours.get(name) != recipe.get(name)]
            raise RunError(
                f"{step} is a checkpoint of another run ({', '.join(differ)} differ); remove {self.folder} to train "
                "from the start, or give another folder"
            )

    def _cut_log(self, iteration: int) -> list[dict[str, Any]]:
        """The rows up to `iteration`; later ones, whose iterations come again, are cut off, a torn one too."""
        path = self.folder / LOG
        rows = [row for row in read_jsonl(path) if row["iteration"] <= iteration] if path.is_file() else []
        if [row["iteration"] for row in rows] != list(range(1, iteration + 1)):
            raise RunError(
                f"{path}: {len(rows)} whole rows of the {iteration} before the checkpoint; remove {self.folder} to "
                "train from the start"
            )
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return rows


# --- What a checkpoint holds ---


def fingerprint(policy: Any) -> str:
    """Tells one frozen base from another: sha256 over names, shapes and first values of what is not trained."""
    frozen = {
        name: [list(p.shape), p.detach().flatten()[:8].float().tolist()]
        for name, p in policy.named_parameters()
        if not p.requires_grad
    }
    return digest(frozen)


def _trained(policy: Any) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}


def _put_weights(policy: Any, weights: Mapping[str, Tensor], step: Path) -> None:
    trained = _trained(policy)
    if {name: p.shape for name, p in trained.items()} != {name: w.shape for name, w in weights.items()}:
        raise RunError(f"{step} holds other weights than this policy trains; load the policy that the run began with")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(weights[name])


def _put_optimizer(policy: Any, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    copies = state.get("fp32_copies", ())
    optimizer.load_state_dict(state)
    # The 8-bit optimizer's own loading passes by `tuning`'s hook, so its copies are put back here.
    in_policy = {id(parameter) for parameter in policy.parameters()}
    stepped = [parameter for parameter in _stepped(optimizer) if id(parameter) not in in_policy]
    with torch.no_grad():
        for parameter, kept in zip(stepped, copies, strict=True):
            parameter.copy_(kept)


def _stepped(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _random_states() -> dict[str, Any]:
    kind, keys, *rest = numpy.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),  # type: ignore[attr-defined]
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _put_random_states(states: Mapping[str, Any]) -> None:
    random.setstate(states["python"])
    numpy.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


# --- Nested data as JSON and tensors ---


def _copied(tensor: Tensor) -> Tensor:
    """On the CPU, sharing memory with nothing, as safetensors asks for."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _packed(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """`value` as JSON that keeps tuples and keys that are numbers; its tensors go to `tensors` under their path."""
    if isinstance(value, Tensor):
        tensors[path] = _copied(value)
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {"items": [[key, _packed(entry, tensors, f"{path}.{key}")] for key, entry in value.items()]}
    if isinstance(value, (list, tuple)):
        entries = [_packed(entry, tensors, f"{path}.{index}") for index, entry in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": entries}
    return value


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {key: _unpacked(entry, tensors) for key, entry in content}
    entries = [_unpacked(entry, tensors) for entry in content]
    return tuple(entries) if kind == "tuple" else entries
