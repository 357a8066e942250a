"""Tokenizer and policy: the CPU world's small Llama made anew, and any folder in the Hugging Face layout loaded.

The tokenizer is word-level with single digits, so that a sum is worked digit by digit and an SQL answer is short.
`trust_remote_code` is never true; weights are safetensors.
"""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from dphlib.config import ModelConfig, WorldConfig
from dphlib.cpuworld import corpus

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
# a word with the space before it; one digit; a closing brace
_PIECES = r"▁?[0-9]|▁?\}|▁?[^▁0-9\}]+"
_MAX_POSITIONS = 256


def build_tokenizer(world: WorldConfig, corpus_pairs: int = 20_000) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over every word that the supervised corpus uses.

    Args:
        world: its corpus gives the words.
        corpus_pairs: how many (prompt, answer) pairs are read for them.

    Returns:
        A fast tokenizer that puts one beginning-of-sequence token first and whose `decode` gives the text back.
    """
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always", split=False),
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
        ]
    )
    words = {piece for digit in "0123456789" for piece in (digit, f"▁{digit}")}
    for pair in islice(corpus(world, random.Random(world.seed)), corpus_pairs):
        for text in pair:
            words.update(piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    vocabulary = {word: index for index, word in enumerate([PAD, BOS, EOS, UNK, *sorted(words)])}
    tokenizer.model = models.WordLevel(vocabulary, unk_token=UNK)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNK, padding_side="left"
    )


def new_model(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """A Llama with random initial weights, fp32."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            max_position_embeddings=_MAX_POSITIONS,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def load(folder: Path | str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer from a folder in the Hugging Face layout.

    Raises:
        FileNotFoundError: no model there.
        ValueError: the tokenizer has more tokens than the model has embeddings.
    """
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"no model in {folder}: config.json is missing; run the stage that makes it first")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise ValueError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model embeds "
            f"{model.get_input_embeddings().num_embeddings}; this model is of another vocabulary"
        )
    return model.eval(), tokenizer
