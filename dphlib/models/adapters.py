"""LoRA adapters on disk: PEFT's layout in safetensors, the base they belong to, and a model card.

A folder holds `adapter_model.safetensors`, `adapter_config.json` (both PEFT's, read by `PeftModel` and vLLM),
`base.json` (name, revision and hash of the base's weights) and `README.md`. An adapter is put on the base it was
trained on and on no other. Nothing is merged: 4-bit weights plus an adapter are not the weights that were trained.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from dphlib import __version__
from dphlib.models.load import refuse_damaged
from dphlib.models.tuning import refuse_adapted
from dphlib.runtime.files import InputError, MissingFileError, clear_errors, sha256_file, write_json, write_text

WEIGHTS, CONFIG, BASE = "adapter_model.safetensors", "adapter_config.json", "base.json"


@dataclass(frozen=True, slots=True)
class Base:
    """The model under an adapter.

    Args:
        name: its name on the Hugging Face hub, or its folder's name.
        revision: commit on the hub, None for a folder.
        sha256: of the weight files' hashes in order of their names; a copy of the files has the same.
        licence: SPDX name, or `other`.
    """

    name: str
    revision: str | None
    sha256: str
    licence: str


@dataclass(frozen=True, slots=True)
class Card:
    """What a model card states beside the base and the adapter's shape.

    Args:
        method: a name of `settings.methods.METHODS`, and the settings that differ from it.
        data: what it was trained on, with revision or hash.
        seeds: of training.
        licence: of the adapter, SPDX name or `other`.
    """

    method: str
    data: str
    seeds: Sequence[int]
    licence: str


def describe_base(folder: Path, licence: str, *, name: str | None = None, revision: str | None = None) -> Base:
    """Which model is in `folder`, by its weights.

    Raises:
        FileNotFoundError: no safetensors file there.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise MissingFileError(f"no *.safetensors in {folder}; the base must be saved as safetensors")
    lines = [f"{file.name} {_file_hash(file)}\n" for file in files]
    return Base(name or folder.name, revision, hashlib.sha256("".join(lines).encode()).hexdigest(), licence)


def _file_hash(file: Path) -> str:
    """sha256; the hub's cache names a file's content by it, which saves reading 16 GB."""
    content = file.resolve()
    if content.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", content.name):
        return content.name
    return sha256_file(file)


def adapter_sha256(folder: Path) -> str:
    """Hash of the adapter's weights, the name under which rollouts record it."""
    return sha256_file(folder / WEIGHTS)


def save_adapter(policy: Any, folder: Path, base: Base, card: Card) -> str:
    """Writes the adapter of `policy` to `folder`, whole or not at all.

    Returns:
        sha256 of its weights.

    Raises:
        ValueError: `policy` has no adapter.
        FileExistsError: `folder` exists; a trained adapter is never overwritten.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists; remove it or choose another folder, adapters are not overwritten")
    temporary = folder.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{folder.name}")
    try:
        with clear_errors(folder):
            write_weights(policy, temporary)
            settings = json.loads((temporary / CONFIG).read_text(encoding="utf-8"))
            # PEFT notes the base's folder on this machine, which means nothing elsewhere.
            settings |= {"base_model_name_or_path": base.name, "revision": base.revision}
            write_json(temporary / CONFIG, settings)
            write_json(temporary / BASE, asdict(base))
            write_text(temporary / "README.md", card_text(base, card, settings, adapter_sha256(temporary)))
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return adapter_sha256(folder)


def write_weights(policy: Any, folder: Path) -> None:
    """The adapter in PEFT's layout without base and card, as a sampler reads it; overwrites."""
    if not hasattr(policy, "peft_config"):
        raise ValueError("the policy has no adapter to save; save a fully tuned model by model.save")
    policy.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)


def load_adapter(model: PreTrainedModel, folder: Path, base: Base) -> Any:
    """`model` with the adapter of `folder` on it.

    Args:
        model: the base, without an adapter.
        base: what `model` is, from `describe_base`.

    Raises:
        FileNotFoundError: no adapter there.
        ValueError: it belongs to another base, its files are damaged, its keys do not fit the base, or `model` carries
            an adapter already.
    """
    from peft import PeftModel, get_peft_model_state_dict

    refuse_adapted(model)
    check_adapter(folder, base)
    in_fp32 = model.dtype == torch.float16  # as `tuning.prepare` makes them
    with warnings.catch_warnings():  # of keys that are missing, which are refused below
        warnings.filterwarnings("ignore", "Found missing adapter keys")
        adapted = PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=in_fp32).eval()
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        held = set(file.keys())
    needed = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if other := sorted(held ^ needed):
        what = "is missing" if other[0] in needed else "fits nowhere"
        raise InputError(
            f"{folder / WEIGHTS}: {len(held & needed)} of its {len(held)} keys fit the {len(needed)} that the base and "
            f"{CONFIG} call for, {other[0]} {what}; name the keys as PEFT does, or save it again by save_adapter"
        )
    return adapted


def check_adapter(folder: Path, base: Base) -> None:
    """Raises as `load_adapter` does when `folder` holds no whole adapter of `base`."""
    for name in (WEIGHTS, CONFIG, BASE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no adapter in {folder}: {name} is missing; name a folder that save_adapter wrote")
    recorded = json.loads((folder / BASE).read_text(encoding="utf-8"))
    if recorded["sha256"] != base.sha256:
        theirs, ours = ((f"{b['name']} ({b['revision'] or b['sha256'][:12]})") for b in (recorded, asdict(base)))
        raise ValueError(f"{folder} is an adapter of {theirs}, the model is {ours}; load the adapter's own base")
    refuse_damaged(folder / WEIGHTS, "copy it again, or train it again")


def card_text(base: Base, card: Card, settings: dict[str, Any], sha256: str) -> str:
    """The model card: metadata that the hub reads, then what it is in a table."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=base.name,
        library_name="peft",
        license=card.licence,
        pipeline_tag="text-generation",
        tags=["lora", "reinforcement-learning", "dph-rl"],
    )
    revision = f" at revision {base.revision}" if base.revision else ""
    rows = {
        "Base": f"{base.name}{revision}, licence {base.licence}, weights sha256 {base.sha256}",
        "Method": card.method,
        "Data": card.data,
        "Seeds": ", ".join(map(str, card.seeds)),
        "Adapter": f"LoRA, rank {settings['r']}, alpha {settings['lora_alpha']}, dropout {settings['lora_dropout']}, "
        f"on {', '.join(sorted(settings['target_modules']))}",
        "Weights": f"{WEIGHTS}, sha256 {sha256}",
        "Licence": f"{card.licence}; the base's licence holds for its use as well",
        "Made by": f"dphlib {__version__}",
    }
    table = "\n".join(f"| {key} | {value.replace('|', chr(92) + '|')} |" for key, value in rows.items())
    return f"""---
{data.to_yaml().strip()}
---

# LoRA adapter for {base.name}

Trained by reinforcement learning with verifiable rewards (arXiv:2509.07430). Load it on its base:

```python
from peft import PeftModel
policy = PeftModel.from_pretrained(base_model, "this folder")
```

| | |
|---|---|
{table}
"""
