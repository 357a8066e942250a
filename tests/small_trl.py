"""A store of a small base, and TRL's trainer with settings for it: what the tests of DPH-RL in TRL share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from small import sum_problems, tokenizer
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig

from dphlib.divergences import generator
from dphlib.integrations import store
from dphlib.integrations.trl import DPHTrainer
from dphlib.models.load import load_model, load_tokenizer
from dphlib.partition import Partition, Reference
from dphlib.sampling.protocol import SamplingConfig
from dphlib.sampling.transformers import TransformersSampler
from dphlib.types import Problem

PROBLEMS = sum_problems(10)
TEMPLATED = [replace(problem, prompt=f"\n<s>{problem.prompt}") for problem in PROBLEMS]
"""Prompts as some chat templates write them: white space, then the token that the tokenizer puts in front as well."""


def unlike_export(base_folder: Path) -> PreTrainedTokenizerBase:
    """The base's tokenizer, with the same hash, that makes other token ids of `TEMPLATED`: it reads `<s>` as text."""
    words = load_tokenizer(base_folder)
    words.split_special_tokens = True
    return words


def equal_rewards(completions, **_):
    return [1.0] * len(completions)


def export_store(folder: Path, base_folder: Path, problems: list[Problem] = PROBLEMS) -> Path:
    """Stored answers of the base to six problems, the others to explore."""
    policy, words = load_model(base_folder)
    answers = TransformersSampler(policy, words).sample(problems[:6], SamplingConfig(1, 1.0, 1.0, 9), 0)
    references = [Reference(p, a.token_ids, a.logprobs) for p, (a,) in zip(problems[:6], answers, strict=True)]
    store.export(folder, Partition(problems[:6], problems[6:], references), 6, base_folder)
    return folder


def config(folder: Path, **changes) -> GRPOConfig:
    settings = {
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 8,
        "max_steps": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "epsilon_high": 0.28,
        "delta": 3.0,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 3,
    }
    return GRPOConfig(str(folder), **settings | changes)


def dph(policy, folder, held, *, rewards=equal_rewards, arguments=None, **settings) -> DPHTrainer:
    dph_settings = {"store": held, "divergence": generator("forward_kl"), "eta": 0.5, "rehearsal_rows": 4}
    arguments = {"processing_class": tokenizer()} | (arguments or {})
    changes = {name: settings.pop(name) for name in (*dph_settings, "base") if name in settings}
    return DPHTrainer(policy, rewards, config(folder, **settings), **arguments, **dph_settings | changes)


def rehearsed(trainer) -> list[float]:
    return [row["rehearsal/divergence"] for row in trainer.state.log_history if "grad_norm" in row]
