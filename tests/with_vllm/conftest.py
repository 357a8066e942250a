"""One engine for a file of tests: its start takes most of the time, and a process holds one at a time."""

from __future__ import annotations

import importlib.util
import os

if importlib.util.find_spec("vllm"):
    # vLLM compiles helpers at the first batch; it takes longer than all of these tests and changes no result.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import pytest
from servable import OPTIONS, RANK
from small import tokenizer

from dphlib.sampling.vllm import VllmSampler


@pytest.fixture(scope="module")
def start():
    """Starts the file's engine; it ends with the file."""
    started = []

    def start_one(folder, **settings) -> VllmSampler:
        shared = {"max_tokens": 128, "dtype": "float32", "engine_options": OPTIONS}
        started.append(VllmSampler(folder, tokenizer(), **shared, **settings))
        return started[-1]

    yield start_one
    for sampler in started:
        sampler.close()


@pytest.fixture(scope="module")
def sampler(start, base_folder):
    return start(base_folder, lora_rank=RANK)
