"""A small world, tokenizer and policy with random weights, for tests that need all three."""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from pathlib import Path

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from dphlib.models.load import build_tokenizer, new_model, save_model
from dphlib.settings.profiles import Profile, profile
from dphlib.settings.stages import BaseConfig, ModelConfig, WorldConfig
from dphlib.types import Group, Problem, Verdict

WORLD = WorldConfig(
    problems={"train": 12, "validation": 4, "in_domain": 6, "cross_domain": 5, "out_of_domain": 6, "sums_train": 10}
)
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""Of a model by Transformers' own configuration."""


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(WORLD, corpus_pairs=3000)


def policy(seed: int = 0, width: int = 32) -> LlamaForCausalLM:
    shape = ModelConfig(hidden_size=width, intermediate_size=2 * width, layers=2, heads=2, kv_heads=2)
    return new_model(shape, tokenizer(), seed).eval()


def save_policy(folder: Path, seed: int = 0, width: int = 64) -> Path:
    """A model folder; by default with sizes in multiples of NF4's blocks and heads that vLLM serves on a CPU."""
    save_model(policy(seed, width), tokenizer(), folder)
    return folder


def base_config(folder: Path, width: int = 64) -> BaseConfig:
    """What a profile says of a base that `save_policy` wrote."""
    sizes = {"layers": 2, "hidden_size": width, "intermediate_size": 2 * width, "head_size": width // 2}
    words = {"vocabulary": len(tokenizer()), "tied": True, "chat": False}
    return BaseConfig(str(folder), None, "mit", heads=2, kv_heads=2, **sizes, **words)


def sum_problems(count: int) -> list[Problem]:
    return [
        Problem(f"p{i}", "out_of_domain", "math", f"question : {10 + i} + {i + 2} answer :", str(2 * i + 12), None, {})
        for i in range(count)
    ]


def small_profile(**changes: object) -> Profile:
    """The smoke profile on the small world, with a policy that is trained for a moment only."""
    smoke = profile("smoke")
    return replace(smoke, world=WORLD, sft=replace(smoke.sft, steps=3), **changes)


def logged_names() -> list[str]:
    """The entries that docs/training_log.md explains, in its order."""
    text = (Path(__file__).resolve().parents[1] / "docs" / "training_log.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `(\w+)` \| .+ \| .+ \| .+ \|$", text, re.MULTILINE)


def untimed(rows: list[dict]) -> list[dict]:
    """Log rows without times and memory, which differ from run to run."""
    return [{k: v for k, v in row.items() if not k.endswith(("_s", "_gib"))} for row in rows]


class RewardsFirstToken:
    """A stand-in for the verifier: an answer is correct when its first token is even."""

    def groups(self, problems, answers):
        return [
            Group(p, tuple(group), tuple(Verdict("correct" if a.token_ids[0] % 2 == 0 else "wrong") for a in group))
            for p, group in zip(problems, answers, strict=True)
        ]
