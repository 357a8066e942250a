"""The profile lm in its smallest form: a real pretrained model through vLLM, the trainer, Transformers, PEFT and TRL.

30 layers, queries in groups, tied embeddings, 49,152 tokens, a padding token that is the end token: what the small
model of the other tests has none of. Comparisons are in fp32, the stages as a user's run computes them.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pandas as pd
import pytest
import torch
from servable import OPTIONS, scored
from transformers import AutoModelForCausalLM

from dphlib.experiment.pipeline import Pipeline
from dphlib.experiment.policies import ADAPTER
from dphlib.models import pretrained, tuning
from dphlib.models.adapters import describe_base, load_adapter
from dphlib.models.load import Placement, chat_prompt, end_tokens, load_model, load_tokenizer
from dphlib.runtime.files import read_jsonl
from dphlib.sampling.protocol import SamplingConfig
from dphlib.sampling.transformers import TransformersSampler
from dphlib.sampling.vllm import VllmSampler
from dphlib.settings.profiles import Profile, profile
from dphlib.settings.variants import RunConfig
from dphlib.world.people_places import corpus
from dphlib.world.templates import STYLES

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
SUITES = ("in_domain", "cross_domain", "out_of_domain")
SMOKE = profile("lm-smoke")
LM = replace(
    SMOKE,
    world=replace(SMOKE.world, problems={**SMOKE.world.problems, "train": 20}),
    pretrained=replace(SMOKE.pretrained, steps=20, batch=8, lr=4e-4),
    presample=replace(SMOKE.presample, k=4, threshold=3, answers=2),
    evaluation=replace(SMOKE.evaluation, samples=dict.fromkeys(SUITES, 4), steps=(), step_samples=2),
)
"""lm-smoke with less fine-tuning and fewer answers, to more prompts: on any processor some are near-perfect."""
RUN = RunConfig("dph_f", "main", 0)
GREEDY, DRAWS = SamplingConfig(1, 0.0, 1.0, 16), SamplingConfig(2, 1.0, 1.0, 16)
TOLERANCE = 1e-4
"""Nats per token, in fp32, between two programs' log-probs of one token."""


def settings(tuning_kind: str, program: str) -> Profile:
    """Each program's answers are evaluated once: those of Transformers as a stage, those of vLLM at a way-point."""
    tuned, backend = replace(LM.tuning, kind=tuning_kind), replace(LM.backend, program=program)
    steps = (2,) if (tuning_kind, program) == ("lora", "vllm") else ()
    return replace(LM, tuning=tuned, backend=backend, evaluation=replace(LM.evaluation, steps=steps))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("lm")


@pytest.fixture(scope="module")
def pipeline(root) -> Pipeline:
    return Pipeline(root, LM)


@pytest.fixture(scope="module")
def base(pipeline):
    return pipeline.base_folder()


@pytest.fixture(scope="module")
def words(base):
    return load_tokenizer(base)


@pytest.fixture(scope="module")
def problems(pipeline):
    return [*pipeline.suite("in_domain")[:3], *pipeline.suite("out_of_domain")[:3]]


# --- The stages, before an engine is started for the comparisons: a process holds one at a time ---


@pytest.mark.parametrize("program", ["transformers", "vllm"])
@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_a_run_is_presampled_trained_and_evaluated(root, kind, program):
    pipeline = Pipeline(root, settings(kind, program))
    trained = pipeline.train_one(RUN)
    logs = read_jsonl(trained.path / "train_log.jsonl")
    assert [row["iteration"] for row in logs] == [1, 2]
    for row in logs:
        assert row["sampler"].startswith(program) and row["rl_rows"] == 16
        assert row["rehearsal_rows"] == 4
    assert max(row["grad_norm"] for row in logs) > 0
    bound = 0.05 if program == "transformers" and kind == "lora" else 0.5  # nats; 4 bits and 16 are two models
    assert max(row["sampler_gap"] or 0.0 for row in logs) < bound
    assert 0 <= logs[0]["loss_near_perfect"] < 0.01, "stored answers are scored by the policy that is trained"
    assert json.loads((trained.path / ADAPTER / "base.json").read_text())["name"] == "SmolLM2-135M-Instruct-cpu-world"
    if kind == "lora":
        at_end = pipeline.evaluate_one(RUN).path / "records.parquet" if program == "transformers" else None
        records = pd.read_parquet(at_end or trained.path / "waypoints.parquet")
        assert set(records["suite"]) == (set(SUITES) if at_end else {"validation"}) and set(records["step"]) == {2}
        assert set(records.loc[records["temperature"] > 0, "n"]) == {4 if at_end else 2}
        assert records[list(STYLES)].any(axis=None) and records["compared_tokens"].any() == bool(at_end)


def test_answers_of_the_corpus_fit_into_the_profiles_limit_in_the_models_own_tokens(words):
    pairs = corpus(LM.world, random.Random(1))
    answers = [next(pairs)[1] for _ in range(3000)]
    longest = max(len(ids) for ids in words(answers, add_special_tokens=False)["input_ids"])
    limit = profile("lm").train.max_new_tokens
    assert longest + 1 <= limit == profile("lm").evaluation.max_new_tokens <= longest + 8


def test_the_tokenizer_that_is_kept_writes_the_prompts_of_the_problems(words, pipeline, problems):
    plain = Pipeline(pipeline.run.root.parent / "plain", replace(profile("smoke"), world=LM.world))
    for suite in ("in_domain", "out_of_domain"):
        for ours, bare in zip(pipeline.suite(suite), plain.suite(suite), strict=True):
            assert ours.prompt == chat_prompt(words, bare.prompt) == pretrained.chat_prompt(bare.prompt)
    assert words.eos_token == words.pad_token == "<|im_end|>"
    assert words(problems[0].prompt)["input_ids"].count(words.bos_token_id) == 2, "one for each turn"


# --- The same numbers, in fp32 ---


@pytest.fixture(scope="module")
def engine(base, words):
    options = OPTIONS | {"kv_cache_memory_bytes": 2**28, "max_num_seqs": 16}
    sampler = VllmSampler(
        base, words, lora_rank=LM.tuning.rank, max_tokens=128, dtype="float32", engine_options=options
    )
    yield sampler
    sampler.close()


@pytest.fixture(scope="module")
def plain(base):
    """Transformers alone."""
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def flat(answers) -> list[float]:
    return [value for group in answers for answer in group for value in answer.logprobs]


def ids_of(answers) -> list[tuple[int, ...]]:
    return [answer.token_ids for group in answers for answer in group]


def assert_agrees(engine, policy, words, problems) -> None:
    """vLLM's greedy tokens are the trainer's sampler's, and both log-probs are the trainer's own."""
    theirs = engine.sample(problems, GREEDY, 0)
    ours = TransformersSampler(policy, words).sample(problems, GREEDY, 0)
    assert ids_of(theirs) == ids_of(ours)
    assert flat(theirs) == pytest.approx(flat(ours), abs=TOLERANCE)
    drawn = engine.sample(problems, DRAWS, 1)
    assert flat(drawn) == pytest.approx(scored(policy, problems, drawn, words), abs=TOLERANCE)


def test_vllm_the_trainer_and_plain_transformers_agree_on_the_base(engine, base, plain, words, problems):
    engine.use_adapter(None)
    policy, _ = load_model(base)
    assert_agrees(engine, policy, words, problems)
    for problem, (answer,) in zip(problems, engine.sample(problems, GREEDY, 0), strict=True):
        prompt = words(problem.prompt, return_tensors="pt")
        ids = plain.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert tuple(ids.tolist()) == answer.token_ids
        whole = torch.tensor([[*answer.prompt_ids, *answer.token_ids]])
        logprobs_T = plain(whole).logits[0, len(answer.prompt_ids) - 1 : -1].log_softmax(-1)
        assert logprobs_T.gather(-1, ids[:, None])[:, 0].tolist() == pytest.approx(answer.logprobs, abs=TOLERANCE)
    assert end_tokens(words, policy.generation_config) == [words.eos_token_id]


def test_after_a_step_vllm_and_the_trainer_move_together(engine, base, words, problems):
    policy, _ = tuning.load_policy(base, LM.tuning, placement=Placement("cpu", "float32", "sdpa"))
    optimizer = tuning.optimizer(policy, 1e-2)
    engine.sync(policy)
    before = engine.sample(problems, GREEDY, 0)
    for _ in range(2):  # the first moves B alone, which is zero
        ids = words([problem.prompt for problem in problems[:2]], return_tensors="pt", padding=True)
        policy(**ids, labels=ids["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    engine.sync(policy)
    assert flat(engine.sample(problems, GREEDY, 0)) != pytest.approx(flat(before), abs=10 * TOLERANCE)
    assert_agrees(engine, policy, words, problems)


def test_the_adapter_of_a_run_is_the_same_in_plain_peft_and_in_vllm(root, engine, base, plain, words, problems):
    from peft import PeftModel

    folder = Pipeline(root, settings("lora", "transformers")).train_one(RUN).path / ADAPTER
    policy = load_adapter(load_model(base)[0], folder, describe_base(base, "apache-2.0"))
    engine.use_adapter(folder)
    assert_agrees(engine, policy, words, problems)
    ids = words([problem.prompt for problem in problems[:1]], return_tensors="pt")
    of_base = plain(**ids).logits
    theirs = PeftModel.from_pretrained(plain, folder)
    torch.testing.assert_close(theirs(**ids).logits, policy(**ids).logits, atol=1e-4, rtol=1e-5)
    assert not torch.allclose(theirs(**ids).logits, of_base, atol=1e-4), "the adapter was trained"
    theirs.unload()


def test_the_same_model_and_stored_answers_train_in_trl(root, base, words, tmp_path):
    from peft import LoraConfig
    from small_trl import dph, rehearsed

    from dphlib.integrations import store

    pipeline = Pipeline(root, settings("lora", "transformers"))
    store.export(tmp_path / "store", pipeline.parts(), LM.presample.threshold, base)
    trainer = dph(
        str(base),
        tmp_path / "trl",
        store.read(tmp_path / "store"),
        rewards=lambda completions, **_: [float(len(text) % 2) for text in completions],
        arguments={"peft_config": LoraConfig(r=4, target_modules="all-linear"), "processing_class": words},
        learning_rate=1e-3,
        model_init_kwargs={"dtype": "float32"},
    )
    trainer.train()
    first, second = rehearsed(trainer)
    # The store has the log-probs of bfloat16 where the CPU computes in it; TRL's are of fp32.
    assert abs(first) < 0.01 and second != first
