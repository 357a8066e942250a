"""Stored answers of the small policy, and the sizes to which the launch script's settings are cut for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from small import tokenizer

from dphlib.partition import Reference
from dphlib.training.scoring import answer_logprobs
from dphlib.types import Problem
from dphlib.world.templates import sum_answer

SMALL = (
    "data.max_prompt_length=16",
    "data.max_response_length=32",
    "data.train_batch_size=7",
    "data.dph.explore_prompts=4",
    "data.dph.rehearsal_rows=3",
    "data.dph.rollouts=4",
    "data.dph.epochs=1",
    "trainer.v1.sampler.sampler_kwargs.rehearsal_rows=3",
    "trainer.v1.sampler.sampler_kwargs.mini_batch_rows=12",
    "trainer.v1.sampler.sampler_kwargs.processes=1",
    "+actor_rollout_ref.model.override_config.attn_implementation=eager",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=3",
    "trainer.n_gpus_per_node=1",
)


def answer_ids(text: str) -> tuple[int, ...]:
    return (*tokenizer()(text, add_special_tokens=False)["input_ids"], tokenizer().eos_token_id)


def references(base: Any, problems: Sequence[Problem]) -> list[Reference]:
    """A stored answer a problem with the log-probs that `base` gives it; lengths differ."""
    answers = [sum_answer("direct", "1 + 1 = 2 ;" * (i % 3), int(p.gold)) for i, p in enumerate(problems)]
    pairs = [(p.prompt, answer_ids(answer)) for p, answer in zip(problems, answers, strict=True)]
    scored = answer_logprobs(base, tokenizer(), pairs)
    return [Reference(problem, ids, tuple(row)) for problem, (_, ids), row in zip(problems, pairs, scored, strict=True)]
