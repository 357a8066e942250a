"""Tokenizer and policy: the CPU world's small Llama made anew, and any model in the Hugging Face layout loaded.

The tokenizer is word-level with single digits, so that a sum is worked digit by digit and an SQL answer is short.
A model of the hub is loaded at a pinned revision only. `trust_remote_code` is never true; weights are safetensors.
"""

from __future__ import annotations

import importlib
import random
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import errors, snapshot_download
from safetensors import SafetensorError, safe_open
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from dphlib.models.output_head import refuse_other_head
from dphlib.runtime.files import InputError, MissingFileError, RunError
from dphlib.settings.stages import ModelConfig, WorldConfig
from dphlib.world.people_places import corpus

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
# a word with the space before it; one digit; a closing brace
_PIECES = r"▁?[0-9]|▁?\}|▁?[^▁0-9\}]+"
_MAX_POSITIONS = 256
_NEEDED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # config, weights, tokenizer, chat template
_PROBE = "1 2"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how a model computes; printable, and plain data for a run's record.

    Args:
        device: torch's name of it.
        dtype: of weights and activations: `float32`, `bfloat16` or `float16`.
        attention: Transformers' name of the attention kernel.
        notes: what the user should know about the choice.

    >>> print(Placement("cpu", "float32", "sdpa", ("no GPU found",)))
    cpu, float32, sdpa (no GPU found)
    """

    device: str
    dtype: str
    attention: str
    notes: tuple[str, ...] = ()

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def __str__(self) -> str:
        line = f"{self.device}, {self.dtype}, {self.attention}"
        return f"{line} ({'; '.join(self.notes)})" if self.notes else line


def choose_placement() -> Placement:
    """The placement for this machine's first GPU, or for its CPU when it has none."""
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    return placement_for(capability, capability is not None and capability >= (8, 0) and _flash_imports())


def placement_for(capability: tuple[int, int] | None, flash_imports: bool) -> Placement:
    """The placement for a CUDA compute capability, None for a CPU.

    Ampere (8.0) and later: bfloat16, and flash-attention when it can be imported, else PyTorch's own fused kernel.
    Volta and Turing, such as Colab's T4: float16, whose range ends at 65,504, so only adapters are trained there.

    >>> placement_for((9, 0), False).dtype
    'bfloat16'
    """
    if capability is None:
        return Placement("cpu", "float32", "sdpa", ("no CUDA GPU",))
    if capability >= (8, 0):
        return Placement("cuda", "bfloat16", "flash_attention_2" if flash_imports else "sdpa")
    version = ".".join(map(str, capability))
    if capability >= (7, 0):
        warning = f"compute capability {version} has no bfloat16: float16 can overflow; train adapters, watch grad_norm"
        return Placement("cuda", "float16", "sdpa", (warning,))
    return Placement("cuda", "float32", "sdpa", (f"compute capability {version} has no fast 16-bit format",))


def _flash_imports() -> bool:
    """A build for another torch is installed and still fails to import, so importing it is the only test."""
    try:
        importlib.import_module("flash_attn")
    except Exception:  # whatever a broken build raises, the way out is the same
        return False
    return True


_PLAIN = Placement("cpu", "float32", "sdpa")


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


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes the Hugging Face layout."""
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def load_model(
    folder: Path, placement: Placement = _PLAIN, *, quantization: Any = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer from a folder in the Hugging Face layout.

    Args:
        folder: of a model of the hub: `fetch` it first.
        placement: device, number format and attention kernel.
        quantization: a configuration of Transformers, see `tuning`.

    Raises:
        FileNotFoundError: no model there.
        ValueError: the tokenizer has more tokens than the model has embeddings, a weight file is damaged, or log-probs
            as training computes them are not the model's own.
    """
    if not (folder / "config.json").is_file():
        raise MissingFileError(f"no model in {folder}: config.json is missing; run the stage that makes it first")
    for file in sorted(folder.glob("*.safetensors")):
        refuse_damaged(file, "copy or download it again, or run the stage that makes it again")
    tokenizer = load_tokenizer(folder)
    device = torch.cuda.current_device() if placement.device == "cuda" else placement.device
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=placement.torch_dtype,
        attn_implementation=placement.attention,
        quantization_config=quantization,
        device_map=None if quantization is None else {"": device},
    )
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise InputError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model embeds "
            f"{model.get_input_embeddings().num_embeddings}; this model is of another vocabulary"
        )
    if placement.attention == "sdpa" and getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # the fused kernel would leave the cap out, without a word
    if quantization is None:
        model = model.to(placement.device)
        refuse_other_head(model.eval(), str(folder))
    return model.eval(), tokenizer


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, padding on the left; one without a padding token (Llama 3's) pads by its end token.

    Padding is masked wherever it is and never scored.

    Raises:
        ValueError: the tokenizer loses spaces, or ends prompts with its end token.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    read = str(tokenizer.decode(tokenizer(_PROBE, add_special_tokens=False)["input_ids"]))
    if read.strip() != _PROBE:
        raise InputError(
            f"{folder}: the tokenizer reads {_PROBE!r} and gives back {read!r}; where it is a byte-level one, write "
            '"tokenizer_class": "PreTrainedTokenizerFast" in its tokenizer_config.json'
        )
    if tokenizer(_PROBE)["input_ids"][-1] == tokenizer.eos_token_id:
        raise InputError(
            f"{folder}: the tokenizer ends prompts with {tokenizer.eos_token}, after which no answer comes; take it "
            "out of post_processor in its tokenizer.json, and set add_eos_token in tokenizer_config.json to false"
        )
    return tokenizer


def end_tokens(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig) -> list[int]:
    """Tokens at which an answer ends: the tokenizer's, and those that the model's generation config names."""
    named = generation.eos_token_id
    ids = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
    return sorted(ids - {None})


def generation_config(folder: Path) -> GenerationConfig:
    """The generation config of the model in a folder; without a file of its own it follows from the model's."""
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder))


def refuse_damaged(file: Path, way_out: str) -> None:
    """Raises ValueError, which ends with `way_out`, when a safetensors file is cut off or is another file."""
    try:
        with safe_open(file, framework="pt") as opened:
            opened.keys()
    except SafetensorError as error:
        raise InputError(f"{file} is damaged ({error}); {way_out}") from error


def fetch(name: str, revision: str) -> Path:
    """The folder of a hub model at a revision, downloaded when it is not in the cache.

    Raises:
        RunError: no access, no such model or revision, or no network; the message says what to do.
        ValueError: `revision` is no commit.
    """
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise InputError(f"{name}: revision {revision!r} can move; name the 40 hex digits of a commit")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_NEEDED))
    except errors.GatedRepoError as error:
        way_out = f"ask at https://huggingface.co/{name}, then `hf auth login` (notebook: HF_TOKEN), or give a folder"
        raise RunError(f"{name}: its owner gives access on request and you have none; {way_out}") from error
    except errors.RepositoryNotFoundError as error:
        raise RunError(f"{name}: no such model on the hub, or a private one; check it, `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise RunError(f"{name}: no revision {revision}; take a commit from the model's page") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        way_out = "connect, or copy the model here and name its folder"
        raise RunError(f"{name}: not in the cache and the hub cannot be reached; {way_out}") from error


def chat_prompt(tokenizer: PreTrainedTokenizerBase, user: str) -> str:
    """`user`'s message in the model's own chat format, up to where the answer begins.

    Without the beginning-of-sequence token, which the tokenizer puts there again: each prompt has exactly one.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"the tokenizer of {Path(tokenizer.name_or_path).name or 'this model'} has no chat template; "
            "take the instruct variant of the model, or a plain template of dphlib.world.templates"
        )
    messages = [{"role": "user", "content": user}]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    unspaced = text.lstrip()  # white space that a template has before its first tag
    begins_twice = tokenizer(unspaced)["input_ids"][:2] == [tokenizer.bos_token_id] * 2
    return unspaced.removeprefix(tokenizer.bos_token) if begins_twice else text
