"""A tiny Llama whose answers are known in advance, in the Hugging Face layout, with a tokenizer and chat template.

It looks at the last token only: after `<|assistant|>` it gives each of `ANSWERS` with its chance, whole, as one token,
and then ends. So what it solves is known without training it, and an adapter can still teach it otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ANSWERS = {"```sql\nSELECT 4\n```": 0.5, "```sql\nSELECT 1\n```": 0.2, "\\boxed{4}": 0.25, "no idea": 0.05}
BEGIN, END, USER, ASSISTANT = "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"
SIZE = 64
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|user|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `texts`; each answer is one token, which is not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = [BEGIN, END, USER, ASSISTANT]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        padding_side="left",
        additional_special_tokens=[USER, ASSISTANT],
    )
    made.add_tokens(list(ANSWERS))
    assert made.pad_token is None, "as Llama 3.1's"
    made.chat_template = TEMPLATE
    return made


def save_base(folder: Path, texts: Sequence[str]) -> Path:
    """Writes model and tokenizer into `folder`; `texts` are what the tokenizer is made for."""
    tokenizer = make_tokenizer(texts)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=SIZE,
            intermediate_size=2 * SIZE,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    ids = {text: tokenizer.convert_tokens_to_ids(text) for text in (*ANSWERS, END, ASSISTANT)}
    with torch.no_grad():
        for layer in model.model.layers:  # what a layer adds is too little to change an answer
            layer.self_attn.o_proj.weight.normal_(std=1e-4)
            layer.mlp.down_proj.weight.normal_(std=1e-4)
        embedding, output = model.get_input_embeddings().weight.zero_(), model.get_output_embeddings().weight.zero_()
        embedding[:, 0] = 1.0  # the last token's kind: 0 any, 1 the assistant's turn, 2 an answer
        for token, kind in ((ASSISTANT, 1), *((answer, 2) for answer in ANSWERS)):
            embedding[ids[token]] = torch.nn.functional.one_hot(torch.tensor(kind), SIZE)
        scale = SIZE**0.5  # of a normed hidden state
        output[:, 1:3] = -20 / scale
        for answer, chance in ANSWERS.items():
            output[ids[answer], 1] = torch.tensor(chance).log() / scale
        output[ids[END], 2] = 0.0
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder
