"""What these tests share: a policy that vLLM's CPU attention serves, the engine's settings, the comparison."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from small import policy, tokenizer

from dphlib.sampling.protocol import SamplingConfig
from dphlib.sampling.transformers import TransformersSampler
from dphlib.training.scoring import answer_logprobs

RANK = 4
GREEDY, DRAWS = SamplingConfig(1, 0.0, 1.0, 12), SamplingConfig(4, 1.0, 1.0, 12)
OPTIONS = {"enforce_eager": True, "kv_cache_memory_bytes": 2**26, "max_num_seqs": 64, "block_size": 32}


servable_policy = partial(policy, width=64)
"""The small policy with heads of 32: vLLM's attention on a CPU has no smaller ones."""


def train_step(policy, optimizer, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, len(tokenizer()), (4, 12), generator=generator)
    policy(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def scored(policy, problems, answers, words=None):
    """What the trainer gives the sampler's own token ids."""
    pairs = [(p.prompt, a.token_ids) for p, group in zip(problems, answers, strict=True) for a in group]
    return [value for row in answer_logprobs(policy, words or tokenizer(), pairs) for value in row]


def logprobs(answers):
    return [value for group in answers for answer in group for value in answer.logprobs]


def assert_agrees(sampler, policy, problems):
    """Greedy tokens and log-probs are those of Transformers on `policy`; drawn tokens get the trainer's log-probs."""
    ours = sampler.sample(problems, GREEDY, 0)
    theirs = TransformersSampler(policy, tokenizer()).sample(problems, GREEDY, 0)
    assert [a.token_ids for (a,) in ours] == [a.token_ids for (a,) in theirs]
    assert logprobs(ours) == pytest.approx(logprobs(theirs), abs=1e-4)
    drawn = sampler.sample(problems, DRAWS, 1)
    assert logprobs(drawn) == pytest.approx(scored(policy, problems, drawn), abs=1e-4)
