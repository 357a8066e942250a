"""verl's final weights as a training stage of a run folder, and the metrics that it logged as that stage's log.

The stage is the one that `Pipeline.train_one` would build, so evaluation, notebooks and claims judge it like any run;
its file `imported.json` says that verl trained it. Not here: merging the parts of an FSDP checkpoint, which verl does.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dphlib.integrations.store import tokenizer_sha256
from dphlib.runtime.files import InputError, MissingFileError, RunError, append_jsonl, write_json
from dphlib.settings.profiles import Profile

IMPORTED = "imported.json"
_MERGE = "python -m verl.model_merger merge --backend fsdp --local_dir {} --target_dir NEW, then --import NEW"
_NO_TENSOR_OF_ITS_OWN = "lm_head.weight"  # where it is tied to the embeddings, some files hold it and some do not


def find_weights(folder: Path) -> Path:
    """The folder below `folder` with whole weights in the Hugging Face layout: itself, or verl's `actor/huggingface`.

    Raises:
        RunError: verl's FSDP checkpoint, whose parts must be merged first, or are not all there.
        MissingFileError: no weights there.
    """
    for place in (folder, folder / "huggingface", folder / "actor/huggingface"):
        if (place / "config.json").is_file() and any(place.glob("*.safetensors")):
            return place
    if parts := list(folder.rglob("model_world_size_*_rank_*.pt")):
        raise RunError(_in_parts(parts))
    raise MissingFileError(
        f"no weights in {folder}: config.json and *.safetensors are needed, as verl.model_merger writes them"
    )


def _in_parts(parts: Sequence[Path]) -> str:
    """What to do with a checkpoint in parts, named `model_world_size_SIZE_rank_RANK.pt`; of several with the last."""
    place = max((part.parent for part in parts), key=_step)
    names = [part.stem.split("_") for part in parts if part.parent == place]
    size, merge = int(names[0][3]), _MERGE.format(place)
    if missing := sorted(set(range(size)) - {int(name[5]) for name in names}):
        ranks = ", ".join(map(str, missing))
        return (
            f"{place} holds {len(names)} of the {size} parts of a checkpoint of verl, without rank {ranks}: copy the "
            f"rest there (each machine writes those of its own processes), then {merge}"
        )
    return f"{place} holds a checkpoint of verl in {size} part(s), not merged: {merge}"


def _step(folder: Path) -> int:
    """The step after which verl wrote a checkpoint; 0 where no folder names it."""
    return max((int(n) for n in re.findall(r"global_step_(\d+)", str(folder))), default=0)


def bring(out: Path, weights: Path, base: Path, settings: Profile, metrics: Path | None) -> None:
    """Fills the folder of a training stage with weights of verl.

    Args:
        out: the stage's folder.
        weights: folder in the Hugging Face layout, see `find_weights`.
        base: folder of the initial policy; tokenizer and generation settings are taken from it.
        settings: the profile.
        metrics: what verl's logger `file` wrote; None for a log of one row, which has the number of iterations alone.

    Raises:
        RunError: weights of another base or the base's own, or a profile that trains adapters.
        InputError: metrics that verl's logger did not write.
    """
    from dphlib.experiment.policies import MODEL
    from dphlib.models.load import load_tokenizer

    if settings.tuning.kind != "full":
        raise RunError(
            f"profile {settings.name} trains adapters ({settings.tuning.kind}), verl's weights are whole; import them"
            " into a profile that trains all weights, such as paper, or set DPH_TUNING=full"
        )
    refuse_other(weights, base)
    rows = list(log_rows(metrics)) if metrics else [_row(settings.train.iterations, {})]
    model = out / MODEL
    model.mkdir(parents=True)
    for file in sorted(
        [*weights.glob("*.safetensors"), *weights.glob("*.safetensors.index.json"), weights / "config.json"]
    ):
        shutil.copyfile(file, model / file.name)
    if (generation := base / "generation_config.json").is_file():
        shutil.copyfile(generation, model / generation.name)
    load_tokenizer(base).save_pretrained(model)
    for row in rows:
        append_jsonl(out / "train_log.jsonl", row)
    write_json(out / IMPORTED, {"trained_by": "verl", "iterations_logged": len(rows) if metrics else None})


def refuse_other(weights: Path, base: Path) -> None:
    """Raises RunError when weights do not come from training `base`: other tensors or tokenizer, or the very same."""
    from dphlib.models.adapters import describe_base
    from dphlib.models.load import load_tokenizer

    ours, theirs = shapes(base), shapes(weights)
    for name in sorted(ours.keys() ^ theirs.keys()):
        if name != _NO_TENSOR_OF_ITS_OWN:
            where = weights if name in theirs else base
            raise RunError(f"{weights} was not trained from {base}: only {where} has the tensor {name}")
    for name in sorted(ours.keys() & theirs.keys()):
        if ours[name] != theirs[name]:
            raise RunError(f"{weights} was not trained from {base}: {name} is {theirs[name]}, not {ours[name]}")
    if (weights / "tokenizer_config.json").is_file():
        found, needed = (tokenizer_sha256(load_tokenizer(folder)) for folder in (weights, base))
        if found != needed:
            raise RunError(
                f"{weights} has another tokenizer (sha256 {found[:12]}) than {base} ({needed[:12]}); import what was"
                " trained from this profile's base"
            )
    if describe_base(weights, "other").sha256 == describe_base(base, "other").sha256:
        raise RunError(f"{weights} holds the weights of the base itself; give the folder of the trained ones")


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The tensors in a folder's safetensors files, by name; nothing of them is loaded."""
    from safetensors import safe_open

    found: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            found |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}
    return found


# --- The log ----------------------------------------------------------------------------------------------------


def log_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of `train_log.jsonl` from a file of verl's logger (`trainer.logger=[console,file]`); null is unknown.

    Raises:
        InputError: no such file, or a line that verl's logger does not write.
    """
    if not path.is_file():
        raise MissingFileError(f"no metrics in {path}; verl writes them with trainer.logger='[console,file]'")
    found = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            step, data = int(entry["step"]), dict(entry["data"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number}: no step and data, as verl's logger `file` writes them") from error
        if "actor/grad_norm" in data:  # the others are of validation
            found = True
            yield _row(step, data)
    if not found:
        raise InputError(f"{path} has no step of training (actor/grad_norm); give the file of verl's file logger")


def _row(iteration: int, data: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: data.get(source) if isinstance(source, str) else source(data) for name, source in _ENTRIES.items()}
    return {"iteration": iteration, **found}


def _reward(data: Mapping[str, Any]) -> float | None:
    """The mean over rollouts: verl's is over all rows, in which a stored answer counts as 0."""
    explored, replayed, mean = (
        data.get(name) for name in ("dph/explore_rows", "dph/rehearsal_rows", "critic/score/mean")
    )
    return None if None in (explored, replayed, mean) else mean * (explored + replayed) / explored  # type: ignore[operator]


def _near_perfect(data: Mapping[str, Any]) -> float | None:
    """L_pef: verl's figure is eta times it."""
    weighted, eta = data.get("actor/rehearsal_loss"), data.get("dph/eta")
    return None if weighted is None or not eta else weighted / eta


_ENTRIES: dict[str, str | Callable[[Mapping[str, Any]], Any]] = {
    "reward": _reward,
    "entropy": "",
    "kl_to_base": "",
    "response_tokens": "",
    "loss": "actor/pg_loss",
    "loss_explore": "actor/explore_loss",
    "loss_near_perfect": _near_perfect,
    "grad_norm": "actor/grad_norm",
    "lr": "actor/lr",
    "clip_fraction": "actor/pg_clipfrac",
    "dual_clip_fraction": "actor/pg_clipfrac_lower",
    "old_kl": "actor/ppo_kl",
    "truncated": "",
    "informative_groups": "",
    "unjudged": "",
    "rl_rows": "dph/explore_rows",
    "rehearsal_rows": "dph/rehearsal_rows",
    "reference_tokens": lambda data: 0,  # the methods that verl trains here have no online reference
    "policy_tokens": "perf/total_num_tokens",
    "sampler": lambda data: "verl",
    "sample_s": "timing_s/gen",
    "update_s": "timing_s/update_actor",
    "step_s": "timing_s/step",
    "peak_gpu_gib": "actor/perf/max_memory_allocated_gb",
}
"""Entry of `docs/training_log.md` -> its name in verl's metrics of a step ("" for none), or how they give it."""
