"""The profiles for GPUs as what they change of the profile `cpu`; each value with where it comes from.

[code] the authors' scripts for Llama-3.1-8B-Instruct on BIRD, 8 x H100; [fig] a table of the paper; [2nd] others' notes
on it; [ours] chosen here, without a run at that scale. A model's commit stands here only if it was seen, in full, with
the model's name in the public code of at least two unrelated projects.

1. `paper` has the authors' numbers but for `top_p`: ours is 1, for their 0.9 is not corrected for (a variant of the
   studies has it).
2. One length for all methods, five passes over all training prompts; the authors train DPH for 5 epochs on D_exp and
   their baselines for 30 on all prompts, which is the variant `iterations=2210`.
3. `gpu80` and `gpu24` train adapters with smaller batches, in the authors' proportions.
4. `gpu24` also fits Colab's free T4 of 15 GiB with the sampler transformers, by calculation: `dph plan --card t4`.

Memory, disk and hours of each: `dph plan --profile NAME`. `ENVIRONMENT` names what a user may change without editing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from dphlib.settings.methods import METHOD_CONFIGS
from dphlib.settings.stages import (
    BackendConfig,
    BaseConfig,
    DataConfig,
    EvalConfig,
    PresampleConfig,
    Program,
    TrainConfig,
    TuningConfig,
    TuningKind,
)

LLAMA_8B = BaseConfig(
    "meta-llama/Llama-3.1-8B-Instruct", "0e9e39f249a16976918f6564b8830bc894c89659", "llama3.1",
    layers=32, hidden_size=4096, intermediate_size=14336, heads=32, kv_heads=8, head_size=128, vocabulary=128256,
)  # fmt: skip
QWEN_MATH_7B = BaseConfig(
    "Qwen/Qwen2.5-Math-7B", "b101308fe89651ea5ce025f25317fea6fc07e96e", "apache-2.0",
    layers=28, hidden_size=3584, intermediate_size=18944, heads=28, kv_heads=4, head_size=128, vocabulary=152064,
    biases=True, context=4096,
)  # fmt: skip
QWEN_1B = BaseConfig(
    "Qwen/Qwen2.5-1.5B-Instruct", "989aa7980e4cf806f80c7fef2b1adb7bc71aa306", "apache-2.0",
    layers=28, hidden_size=1536, intermediate_size=8960, heads=12, kv_heads=2, head_size=128, vocabulary=151936,
    tied=True, biases=True, context=32_768,
)  # fmt: skip
OMNISQL_32B = BaseConfig(
    "seeklhy/OmniSQL-32B", "", "other",
    layers=64, hidden_size=5120, intermediate_size=27648, heads=40, kv_heads=8, head_size=128, vocabulary=152064,
    biases=True, context=32_768,
)  # fmt: skip
BASES = {base.name: base for base in (LLAMA_8B, QWEN_MATH_7B, QWEN_1B, OMNISQL_32B)}

_MATH = ("aime24", "amc23", "math500", "olympiadbench", "college_math")  # Table 2 [fig]
_SQL = DataConfig(
    suites={
        "train": ("bird_train",),  # [code]
        "in_domain": ("bird_dev",),  # Table 1 [fig]
        "cross_domain": ("spider_dev",),  # Table 1 [fig]
        "out_of_domain": _MATH,
        "sums_train": ("gsm8k_train",),  # [ours]: the paper's mathematical training set is not available
    },
    max_prompt_tokens=16_000,  # [code]
)
# The upper ends of the scripts' ranges [code]: forward KL, RKL and alpha 0.01 to 0.05, JS 0.05 to 0.2, which is the
# best of Table 5 [fig]. The controls have forward KL's.
_WEIGHTS = {
    "rkl": 0.05, "alpha_0.2": 0.05, "alpha_0.5": 0.05, "alpha_0.8": 0.05, "dph_f": 0.05, "dph_js": 0.2,
    "dph_js_definition": 0.2, "sft_rehearsal": 0.05, "dph_f_all": 0.05,
}  # fmt: skip
_PRESAMPLE = PresampleConfig(k=8, temperature=1.0, top_p=0.95, threshold=6)  # [code]; threshold of Llama [2nd]

_PAPER_TRAIN = TrainConfig(
    iterations=368,  # [ours] 5 x 9,428 / 128; departure 2
    prompts=128, rollouts=16, mini_batches=2, rehearsal_rows=256,  # [code]
    lr=1e-6, warmup_steps=0, dual_clip=3.0, aggregation="token_mean", advantage_scale="std",  # [code]
    max_grad_norm=1.0,  # [ours]
    max_new_tokens=4096, top_p=1.0,  # [code] for the length; departure 1
    overlong_buffer=1024, max_draws=3,  # [ours]: a quarter of the limit
    importance_cap=2.0,  # [ours]: the sampler is another program
    token_budget=32_768, diagnose_every=10, checkpoint_every=20,  # [ours]
)  # fmt: skip
_PAPER_EVALUATION = EvalConfig(
    samples={"in_domain": 16, "cross_domain": 16, "out_of_domain": 32},  # Pass@16 and Pass@32 [fig]
    steps=(50, 100, 200), step_samples=8, max_new_tokens=4096,
)  # fmt: skip

GPU_PROFILES: dict[str, dict[str, Any]] = {
    "gpu24": {
        "base": QWEN_1B,
        "tuning": TuningConfig("qlora", rank=16, alpha=32, gradient_checkpointing=True),  # [ours]
        "backend": BackendConfig("vllm", batch_rows=256, max_tokens=1536, memory_fraction=0.35),
        "data": DataConfig(
            suites={
                "train": ("gsm8k_train",), "in_domain": ("gsm8k_test",), "cross_domain": ("math500",),
                "out_of_domain": ("aime24", "amc23"),
            },
            problems={"train": 2048, "in_domain": 256, "cross_domain": 256},
            max_prompt_tokens=1024,
        ),
        "presample": replace(_PRESAMPLE, threshold=7),  # of Qwen [2nd]
        "train": TrainConfig(
            iterations=100, prompts=16, rollouts=8, mini_batches=2, rehearsal_rows=16, lr=1e-5, warmup_steps=10,
            max_new_tokens=512, overlong_buffer=128, importance_cap=2.0, token_budget=16_384, diagnose_every=10,
            checkpoint_every=10,
        ),
        "evaluation": EvalConfig(
            samples={"in_domain": 16, "cross_domain": 16, "out_of_domain": 32}, steps=(25, 50), step_samples=8,
            max_new_tokens=512,
        ),
        "seeds": (0,), "ablation_seeds": (0,), "weights": _WEIGHTS,
    },
    "gpu80": {
        "base": LLAMA_8B,
        "tuning": TuningConfig("lora", rank=32, alpha=64, gradient_checkpointing=True),  # [ours]
        "backend": BackendConfig("vllm", batch_rows=128, max_tokens=9216, memory_fraction=0.45),
        "data": DataConfig(suites=_SQL.suites, max_prompt_tokens=8192),
        "presample": _PRESAMPLE,
        "train": TrainConfig(
            iterations=200, prompts=32, rollouts=16, mini_batches=2, rehearsal_rows=64, lr=1e-5, warmup_steps=10,
            max_new_tokens=1024, overlong_buffer=256, importance_cap=2.0, token_budget=16_384, diagnose_every=10,
            checkpoint_every=10,
        ),
        "evaluation": EvalConfig(
            samples={"in_domain": 16, "cross_domain": 16, "out_of_domain": 32}, steps=(50, 100), step_samples=8,
            max_new_tokens=1024,
        ),
        "seeds": (0,), "ablation_seeds": (0,), "weights": _WEIGHTS,
    },
    "paper": {
        "base": LLAMA_8B,
        "tuning": TuningConfig("full", gradient_checkpointing=True),  # [code]
        "backend": BackendConfig("vllm", batch_rows=64, max_tokens=20_096, memory_fraction=0.3, sleep=True),
        "data": _SQL,
        "presample": _PRESAMPLE,
        "train": _PAPER_TRAIN,
        "evaluation": _PAPER_EVALUATION,
        "seeds": (0,), "ablation_seeds": (0,), "weights": _WEIGHTS,
    },
}  # fmt: skip

# --- What the environment changes -------------------------------------------------------------------

ENVIRONMENT = {
    "DPH_BASE": "another base model: NAME@COMMIT on the hub, NAME of one that stands here, or a folder",
    "DPH_TUNING": "full, lora or qlora",
    "DPH_SAMPLER": "vllm, vllm_server or transformers",
    "DPH_METHODS": "some of the methods, such as grpo,dph_f,dph_js: fewer hours",
    "DPH_DATA": "folder of the data sets' official files; without it those with a pinned copy come from the hub",
    "DPH_DEVICE": "cpu: computes without a GPU, for small models and tests",
}
"""Variable -> what it sets, for the profiles of GPUs; those of the CPU read none of them."""
COMPARED = ("grpo", "dph_js")
"""Methods that the notebooks set beside each other, so that no choice may leave them out."""
SMOKE = "-smoke"
"""Ending of the name of a GPU profile in its smallest form."""


def chosen_by_environment(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a GPU profile with what `ENVIRONMENT` changes of them.

    Raises:
        ValueError: a value that is not allowed; the message names the variable.
    """
    tuning = _one_of("DPH_TUNING", get_args(TuningKind), settings["tuning"].kind)
    program = _one_of("DPH_SAMPLER", get_args(Program), settings["backend"].program)
    return {
        **settings,
        "base": _base(settings["base"]),
        "tuning": replace(settings["tuning"], kind=tuning),
        "backend": replace(settings["backend"], program=program),
        "methods": _methods(),
    }


def _one_of(variable: str, known: tuple[str, ...], default: str) -> str:
    value = os.environ.get(variable) or default
    if value not in known:
        raise ValueError(f"{variable}={value!r}; known: {', '.join(known)}")
    return value


def _methods() -> tuple[str, ...]:
    named = [part.strip() for part in os.environ.get("DPH_METHODS", "").split(",") if part.strip()]
    if unknown := [name for name in named if name not in METHOD_CONFIGS]:
        raise ValueError(f"DPH_METHODS: unknown method {unknown[0]!r}; known: {', '.join(METHOD_CONFIGS)}")
    if named and (missing := [name for name in COMPARED if name not in named]):
        raise ValueError(f"DPH_METHODS lacks {', '.join(missing)}; the notebooks compare {' and '.join(COMPARED)}")
    return tuple(name for name in METHOD_CONFIGS if not named or name in named)


def _base(base: BaseConfig) -> BaseConfig:
    """The profile's base, or the one that the environment names, with the shape that a folder's own file has."""
    if not (named := os.environ.get("DPH_BASE")):
        return base
    name, at, revision = named.partition("@")
    if not at and name in BASES:
        return BASES[name]
    if at:
        return replace(BASES.get(name, base), name=name, revision=revision)
    return replace(base, name=name, revision=None, licence="other", **_shape(Path(name)))


def _shape(folder: Path) -> dict[str, Any]:
    """A model's shape by its `config.json`; nothing where that is not there, which is told when it is loaded."""
    if not (path := folder / "config.json").is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    heads = found["num_attention_heads"]
    context = {"context": found["max_position_embeddings"]} if "max_position_embeddings" in found else {}
    return context | {
        "layers": found["num_hidden_layers"], "hidden_size": found["hidden_size"],
        "intermediate_size": found["intermediate_size"], "heads": heads,
        "kv_heads": found.get("num_key_value_heads", heads),
        "head_size": found.get("head_dim") or found["hidden_size"] // heads, "vocabulary": found["vocab_size"],
        "tied": bool(found.get("tie_word_embeddings", False)), "biases": found.get("model_type") == "qwen2",
    }  # fmt: skip


def within_context(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by which no prompt and answer together are longer than the base can read.

    Raises:
        ValueError: an answer alone may be.
    """
    base, backend, data = settings["base"], settings["backend"], settings["data"]
    answer = max(settings["train"].max_new_tokens, settings["evaluation"].max_new_tokens)
    if base.context <= answer:
        raise ValueError(
            f"{base.name} reads at most {base.context} tokens, and an answer of this profile may have {answer}; name "
            "another model by DPH_BASE, or take a profile with shorter answers"
        )
    return {
        **settings,
        "backend": replace(backend, max_tokens=min(backend.max_tokens, base.context)),
        "data": replace(data, max_prompt_tokens=min(data.max_prompt_tokens, base.context - answer)),
    }


def smallest(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every step of a GPU profile, with its model and data sets, on a few problems: does all of it run here?"""
    train, evaluation, data = settings["train"], settings["evaluation"], settings["data"]
    tokens = min(256, train.max_new_tokens)
    return {
        **settings,
        "data": replace(data, problems=dict.fromkeys(data.suites, 6) | {"train": 12}),
        "presample": replace(settings["presample"], threshold=2),
        "train": replace(
            train, iterations=2, prompts=4, rollouts=4, rehearsal_rows=4, warmup_steps=0, max_new_tokens=tokens,
            overlong_buffer=tokens // 4, diagnose_every=1, checkpoint_every=1,
        ),
        "evaluation": replace(
            evaluation, samples=dict.fromkeys(evaluation.samples, 16), steps=(1,), step_samples=8, max_new_tokens=tokens
        ),
        "cost_iterations": 1,
    }  # fmt: skip
