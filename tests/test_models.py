"""Models, tokenizers and adapters that would train or sample something else than they seem to: handled, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from scripted_base import make_tokenizer
from small import SHAPE, save_policy, sum_problems, tokenizer
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)

from dphlib.logprobs import PLAIN, OutputHead, logprobs_from_hidden
from dphlib.models import tuning
from dphlib.models.adapters import WEIGHTS, Card, describe_base, load_adapter, save_adapter
from dphlib.models.load import (
    Placement,
    chat_prompt,
    end_tokens,
    generation_config,
    load_model,
    load_tokenizer,
    save_model,
)
from dphlib.models.output_head import output_head
from dphlib.sampling.protocol import SamplingConfig
from dphlib.sampling.transformers import TransformersSampler
from dphlib.settings.stages import TuningConfig
from dphlib.training.scoring import answer_logprobs

CONFIG = SamplingConfig(samples=3, top_p=0.8, max_new_tokens=6)
HEADS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "mistral, sliding window": (MistralForCausalLM, MistralConfig, {"sliding_window": 4}),
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
    torch.manual_seed(0)
    ids = {name: getattr(tokenizer(), name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    sizes = SHAPE | {"num_attention_heads": 2, "max_position_embeddings": 128, "vocab_size": len(tokenizer())}
    built = model(config(**sizes, **ids, **settings)).eval()
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
    load_model(tmp_path, Placement("cpu", "bfloat16", "sdpa"))  # passes: the rounding of 16-bit logits is allowed for
    model, words = load_model(tmp_path)
    assert (output_head(model) == PLAIN) == family.startswith(("llama", "mistral"))
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


# --- Tokenizers ----------------------------------------------------------------------------------


def byte_level(folder: Path) -> Path:
    make_tokenizer(["1 + 2 = 3"]).save_pretrained(folder)
    return folder


def change(file: Path, **settings) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_a_byte_level_tokenizer_declared_as_llamas_is_refused_and_the_way_out_works(tmp_path):
    config = byte_level(tmp_path) / "tokenizer_config.json"
    change(config, tokenizer_class="LlamaTokenizerFast")
    with pytest.raises(ValueError, match=r"gives back '12'; .*\"tokenizer_class\": \"PreTrainedTokenizerFast\""):
        load_tokenizer(tmp_path)
    change(config, tokenizer_class="PreTrainedTokenizerFast")
    words = load_tokenizer(tmp_path)
    assert words.decode(words("1 + 2")["input_ids"], skip_special_tokens=True) == "1 + 2"


def test_a_tokenizer_that_ends_prompts_is_refused_and_the_way_out_works(tmp_path):
    pieces = ["<unk>", "<s>", "</s>", "▁", "1", "2", "+"]
    words = LlamaTokenizer(
        vocab={p: i for i, p in enumerate(pieces)}, merges=[], add_bos_token=True, add_eos_token=True
    )
    words.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"ends prompts with </s>.* out of post_processor in its tokenizer\.json"):
        load_tokenizer(tmp_path)
    settings = json.loads((tmp_path / "tokenizer.json").read_text())["post_processor"]
    single = [part for part in settings["single"] if part.get("SpecialToken", {}).get("id") != "</s>"]
    change(tmp_path / "tokenizer.json", post_processor=settings | {"single": single})
    assert load_tokenizer(tmp_path)("1")["input_ids"] == [1, 3, 4]


@pytest.mark.parametrize("before", ["", "\n", "  \n\n"])
def test_a_prompt_begins_once_whatever_white_space_its_template_begins_with(before):
    words = make_tokenizer(["1 + 2 = 3"])
    words.chat_template = before + words.chat_template
    text = chat_prompt(words, "1 + 2")
    assert words.decode(words(text)["input_ids"]) == "<|begin|><|user|>1 + 2<|assistant|>"


# --- End tokens ----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_an_answer_ends_at_any_end_token_of_the_model(tmp_path, file):
    save_policy(tmp_path)
    words = tokenizer()
    other = words.convert_tokens_to_ids("▁7")
    if file == "config.json":
        (tmp_path / "generation_config.json").unlink()
    change(tmp_path / file, eos_token_id=[words.eos_token_id, other])
    model, words = load_model(tmp_path)
    ends = end_tokens(words, generation_config(tmp_path))
    assert ends == end_tokens(words, model.generation_config) == sorted([words.eos_token_id, other])
    with torch.no_grad():  # tied embeddings: the token's logit grows with its own row
        model.get_input_embeddings().weight[other] *= 40
    sampled = TransformersSampler(model, words).sample(sum_problems(8), SamplingConfig(4, max_new_tokens=12), 0)
    answers = [answer for group in sampled for answer in group]
    ended = [answer for answer in answers if answer.token_ids[-1] == other]
    assert ended, "no answer ended at the second token: the test tests nothing"
    for answer in answers:
        assert not set(ends) & set(answer.token_ids[:-1])
        assert answer.truncated == (answer.token_ids[-1] not in ends)
    assert all(answer.text == words.decode(answer.token_ids[:-1], skip_special_tokens=True) for answer in ended)


# --- Adapters ------------------------------------------------------------------------------------


def renamed(weights):
    return {key.replace("base_model.model.", "policy."): value for key, value in weights.items()}


def halved(weights):
    return {key: value for key, value in weights.items() if ".layers.0." in key}


def with_more(weights):
    return weights | {"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.zeros(4, 64)}


@pytest.mark.parametrize(
    ("change_keys", "said"),
    [
        (renamed, r": 0 of its 28 keys fit the 28 .* is missing"),
        (halved, r": 14 of its 14 keys fit the 28 .*layers\.1\..* is missing"),
        (with_more, r": 28 of its 29 keys fit the 28 .*layers\.9\..* fits nowhere"),
    ],
)
def test_an_adapter_whose_keys_do_not_fit_is_refused(tmp_path, change_keys, said):
    base = save_policy(tmp_path / "base")
    described = describe_base(base, "mit")
    adapted = tuning.prepare(load_model(base)[0], TuningConfig("lora", rank=4))
    save_adapter(adapted, tmp_path / "adapter", described, Card("grpo", "sums", (0,), "mit"))
    file = tmp_path / "adapter" / WEIGHTS
    save_file(change_keys(load_file(file)), file)
    with pytest.raises(ValueError, match=said):
        load_adapter(load_model(base)[0], tmp_path / "adapter", described)
