"""What a user may change of a profile without editing it: environment variables, read once, at the door.

`profile_from_environment` is that door: commands, notebooks and the jobs that they start open a profile by it, and all
of them see the same variables. Everything behind it takes the settings as they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from dphlib.runtime.files import InputError, meant
from dphlib.settings.gpu import BASES
from dphlib.settings.methods import CONFIGS
from dphlib.settings.profiles import Profile, profile
from dphlib.settings.stages import BaseConfig, Program, TuningKind

ENVIRONMENT = {
    "DPH_BASE": "another base model: NAME@COMMIT on the hub, NAME of one that is known here, or a folder",
    "DPH_TUNING": "full, lora or qlora",
    "DPH_SAMPLER": "vllm or transformers",
    "DPH_METHODS": "some of the methods, such as grpo,dph_f,dph_js: fewer hours",
    "DPH_DATA": "folder of the data sets' official files; without it those with a pinned copy come from the hub",
    "DPH_DEVICE": "cpu: computes without a GPU, for small models and tests",
}
"""Variable -> what it sets, for the profiles of large models (`lm` has its own base and data)."""
RETRAIN = "DPH_RETRAIN_BASE"
"""Variable of the profile `cpu`: 1 trains its bases, in place of those that are shipped."""
COMPARED = ("grpo", "dph_js")
"""Methods that the notebooks set beside each other, so that no choice may leave them out."""


def ask_to_retrain(asked: bool) -> None:
    """Sets `RETRAIN` where a command was asked to, for this process, its notebooks and its jobs."""
    if asked:
        os.environ[RETRAIN] = "1"


def profile_from_environment(name: str, seeds: str = "", study_seeds: str = "") -> Profile:
    """The settings of a profile, see `profiles.profile`, with what this process's environment changes of them.

    Raises:
        ValueError: as `profile`, and as `chosen_by_environment`.
    """
    return chosen_by_environment(profile(name, seeds, study_seeds), os.environ)


def chosen_by_environment(settings: Profile, environment: Mapping[str, str]) -> Profile:
    """A large model's profile with what `ENVIRONMENT` changes of it, within what its base can read.

    Base and data are the GPU profiles' to choose. The profiles of the small model read `RETRAIN` alone.

    Raises:
        ValueError: a value that is not allowed; the message names the variable. Or a base that reads too little.
    """
    if settings.small:
        asked = environment.get(RETRAIN) or "0"
        if asked not in ("0", "1"):
            raise InputError(f"{RETRAIN}={asked!r}; known: 0, 1")
        return replace(settings, shipped="") if asked == "1" else settings
    program = _one_of(environment, "DPH_SAMPLER", Program, settings.backend.program)
    settings = replace(
        settings,
        tuning=replace(settings.tuning, kind=_one_of(environment, "DPH_TUNING", TuningKind, settings.tuning.kind)),
        backend=replace(settings.backend, program=program),
        methods=_methods(environment.get("DPH_METHODS", "")) or settings.methods,
    )
    if settings.base is None or settings.data is None:
        return settings
    answer = max(settings.train.max_new_tokens, settings.evaluation.max_new_tokens)
    base = _base(settings.base, environment.get("DPH_BASE", ""))
    if base.context <= answer:
        raise InputError(
            f"{base.name} reads at most {base.context} tokens, and an answer of this profile may have {answer}; name "
            "another model by DPH_BASE, or take a profile with shorter answers"
        )
    return replace(
        settings,
        base=base,
        backend=replace(settings.backend, max_tokens=min(settings.backend.max_tokens, base.context)),
        data=replace(settings.data, max_prompt_tokens=min(settings.data.max_prompt_tokens, base.context - answer)),
    )


def _one_of(environment: Mapping[str, str], variable: str, literal: Any, default: str) -> Any:
    value = environment.get(variable) or default
    if value not in get_args(literal):
        known = get_args(literal)
        raise InputError(f"{variable}={value!r}; known: {', '.join(known)}{meant(value, known)}")
    return value


def _methods(text: str) -> tuple[str, ...]:
    named = [part.strip() for part in text.split(",") if part.strip()]
    if unknown := [name for name in named if name not in CONFIGS]:
        raise InputError(
            f"DPH_METHODS: unknown method {unknown[0]!r}; known: {', '.join(CONFIGS)}{meant(unknown[0], CONFIGS)}"
        )
    if named and (missing := [name for name in COMPARED if name not in named]):
        raise InputError(f"DPH_METHODS lacks {', '.join(missing)}; the notebooks compare {' and '.join(COMPARED)}")
    return tuple(name for name in CONFIGS if name in named)


def _base(base: BaseConfig, named: str) -> BaseConfig:
    """The profile's base, or the one that is named, with the shape that a folder's own file has."""
    name, at, revision = named.partition("@")
    if not named:
        return base
    if not at and name in BASES:
        return BASES[name]
    if at:
        return replace(BASES.get(name, base), name=name, revision=revision)
    return replace(base, name=name, revision=None, licence="other", **_shape(Path(name)))


def _shape(folder: Path) -> dict[str, Any]:
    """A model's shape by its `config.json`; nothing where there is none, which loading the model reports."""
    if not (path := folder / "config.json").is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        heads = found["num_attention_heads"]
        context = {"context": found["max_position_embeddings"]} if "max_position_embeddings" in found else {}
        return context | {
            "layers": found["num_hidden_layers"],
            "hidden_size": found["hidden_size"],
            "intermediate_size": found["intermediate_size"],
            "heads": heads,
            "kv_heads": found.get("num_key_value_heads", heads),
            "head_size": found.get("head_dim") or found["hidden_size"] // heads,
            "vocabulary": found["vocab_size"],
            "tied": bool(found.get("tie_word_embeddings", False)),
            "biases": found.get("model_type") == "qwen2",
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a model's configuration ({error!r}); get the model's files again") from error
