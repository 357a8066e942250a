"""Models, tokenizers and adapters that would train or sample something else than they seem to: handled, or refused."""

from __future__ import annotations

import pytest
import torch
from small import policy, sum_problems, tokenizer
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)

from dphlib.logprobs import PLAIN, OutputHead, logprobs_from_hidden
from dphlib.models.load import load_model, save_model
from dphlib.models.output_head import output_head, refuse_other_head
from dphlib.sampling.protocol import SamplingConfig
from dphlib.sampling.transformers import TransformersSampler
from dphlib.training.scoring import answer_logprobs

CONFIG = SamplingConfig(samples=3, max_new_tokens=6)
HEADS = {
    "granite": (GraniteForCausalLM, GraniteConfig, {"logits_scaling": 0.2}),
    "cohere": (CohereForCausalLM, CohereConfig, {"logit_scale": 4.0}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {"final_logit_softcapping": 1.0, "head_dim": 16}),
    "gemma2, full attention": (
        Gemma2ForCausalLM,
        Gemma2Config,
        {
            "final_logit_softcapping": 1.0,
            "head_dim": 16,
            "attn_logit_softcapping": None,
            "layer_types": ["full_attention"] * 2,
        },
    ),
    "phi": (PhiForCausalLM, PhiConfig, {}),
}


def made(model: type[PreTrainedModel], config, settings) -> PreTrainedModel:
    """A tiny model of the tokenizer's vocabulary, with logits far from 0."""
    words = tokenizer()
    torch.manual_seed(0)
    built = model(
        config(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=128,
            pad_token_id=words.pad_token_id,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            **settings,
        )
    ).eval()
    head = built.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(10)
        if getattr(head, "bias", None) is not None:
            head.bias.normal_()
    return built


# --- Output heads --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", HEADS)
def test_sampler_trainer_and_the_models_own_logits_agree_whatever_the_head(family, tmp_path):
    save_model(made(*HEADS[family]), tokenizer(), tmp_path)
    model, words = load_model(tmp_path)
    assert output_head(model) != PLAIN
    problems = sum_problems(4)
    sampled = TransformersSampler(model, words).sample(problems, CONFIG, seed=1)
    answers = [(p.prompt, a) for p, group in zip(problems, sampled, strict=True) for a in group]
    scored = answer_logprobs(model, words, [(prompt, a.token_ids) for prompt, a in answers])
    for (_, answer), row in zip(answers, scored, strict=True):
        ids = answer.prompt_ids
        logits = model(torch.tensor([[*ids, *answer.token_ids]])).logits[0, len(ids) - 1 : -1]
        own = logits.log_softmax(-1).gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
        assert row == pytest.approx(own.tolist(), abs=1e-4)
        assert answer.logprobs == pytest.approx(own.tolist(), abs=1e-4)


def test_a_head_that_is_not_known_is_refused_when_loaded(tmp_path):
    save_model(made(FalconH1ForCausalLM, FalconH1Config, {"lm_head_multiplier": 7.0}), tokenizer(), tmp_path)
    with pytest.raises(ValueError, match=r"FalconH1ForCausalLM does more to its logits .* choose a model with a plain"):
        load_model(tmp_path)


def test_a_plain_head_is_plain():
    model = policy()
    assert output_head(model) == PLAIN
    refuse_other_head(model, "a Llama")


@pytest.mark.parametrize("chunk", [3, 100])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_gradients_through_bias_scale_and_cap_are_those_of_the_plain_way(chunk, frozen, with_entropy):
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*size, dtype=torch.float64) for size in ((7, 5), (11, 5), (11,)))
    tokens = torch.randint(11, (7,))
    inputs = [hidden.requires_grad_()] + ([] if frozen else [weight.requires_grad_(), bias.requires_grad_()])
    head = OutputHead(bias, scale=0.7, softcap=2.0)
    ours = logprobs_from_hidden(
        hidden, weight, tokens, temperature=1.3, chunk=chunk, head=head, with_entropy=with_entropy
    )
    log_p = (head.logits(hidden @ weight.T + bias) / 1.3).log_softmax(-1)
    plain = log_p.gather(1, tokens[:, None])[:, 0]
    expected, got = plain.square().sum(), (ours[0] if with_entropy else ours).square().sum()
    if with_entropy:
        entropy = -(log_p.exp() * log_p).sum(-1)
        expected, got = expected + entropy.square().sum(), got + ours[1].square().sum()
    torch.testing.assert_close(got, expected)
    for mine, theirs in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(mine, theirs)
