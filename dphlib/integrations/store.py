"""A partition on its own, as another trainer reads it, bound to the tokenizer and the base that it was made with.

    partition.json      threshold, hashes of base and tokenizer, ids of D_pef and D_exp, sha256 of the two files below
    exploration.jsonl   the problems of D_exp
    references.jsonl    the stored answers, each with its problem, as the stage `partition` writes them

Every row of the two has the token ids of its prompt, so that nothing tokenises it again.

A stored log-probability means something only beside the weights that gave it, a token id only beside its tokenizer:
both are compared by hash, because a wrong one trains without an error and to no purpose. Reading needs no torch;
hashing the base's weights does. Not here: the formats of single trainers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dphlib.partition import Partition, Reference
from dphlib.runtime.files import (
    InputError,
    MissingFileError,
    RunError,
    digest,
    make_folder,
    read_jsonl,
    sha256_file,
    write_json,
    write_text,
)
from dphlib.sampling.protocol import prompt_ids
from dphlib.types import Problem

HEAD, EXPLORATION, REFERENCES = "partition.json", "exploration.jsonl", "references.jsonl"
_PROBE = "SELECT count(*) FROM t WHERE a = 12 ; \\boxed{3}\n question : 4 + 5"


@dataclass(frozen=True, slots=True)
class Origin:
    """What stored answers belong to.

    Args:
        base_sha256: of the weights, see `adapters.describe_base`; a copy of the files has the same.
        tokenizer_sha256: see `tokenizer_sha256`.
    """

    base_sha256: str
    tokenizer_sha256: str

    def differs(self, base: Path, tokenizer: Any) -> tuple[str, str, str] | None:
        """What is not the same in the folder `base` or in `tokenizer`, with both hashes, stored and found, cut short.

        Raises:
            MissingFileError: no weights in `base`.
        """
        from dphlib.models.adapters import describe_base

        if (found := tokenizer_sha256(tokenizer)) != self.tokenizer_sha256:  # first, for it is small
            return "tokenizer", self.tokenizer_sha256[:12], found[:12]
        if (found := describe_base(base, "other").sha256) != self.base_sha256:
            return "base model", self.base_sha256[:12], found[:12]
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Store(Origin):
    """The two sets of prompts and the stored answers, and what they belong to.

    Args:
        exploration: the problems of D_exp.
        references: stored answers with the log-probabilities that the base gives them as a profile trains it (for QLoRA
            in 4 bits), by Transformers, nats, temperature 1. Another kernel or number format rounds otherwise.
        exploration_ids: token ids of the prompt of each problem of D_exp.
        prompt_ids: token ids of the prompt of each stored answer.
        threshold: correct pre-samples from which a prompt was near-perfect.
    """

    exploration: tuple[Problem, ...]
    references: tuple[Reference, ...]
    exploration_ids: tuple[tuple[int, ...], ...]
    prompt_ids: tuple[tuple[int, ...], ...]
    threshold: int

    def refuse_other(self, base: Path, tokenizer: Any) -> None:
        """Raises InputError when `tokenizer`, or the weights in the folder `base`, are not those of the store."""
        if differing := self.differs(base, tokenizer):
            what, stored, found = differing
            raise InputError(
                f"the store was made with another {what} (sha256 {stored}, this one is {found}): train "
                f"from the {what} of the store, or pre-sample and partition with this one"
            )


def origin(base: Path, tokenizer: Any) -> dict[str, Any]:
    """The fields of an `Origin`, of the weights in the folder `base` and a tokenizer."""
    from dphlib.models.adapters import describe_base

    return {"base_sha256": describe_base(base, "other").sha256, "tokenizer_sha256": tokenizer_sha256(tokenizer)}


def tokenizer_sha256(tokenizer: Any) -> str:
    """Hash of what a Transformers tokenizer does: its vocabulary, its end token, and how it cuts a text with SQL,
    digits and braces. Padding, truncation and the form of its files are left out."""
    probe = list(tokenizer(text=_PROBE)["input_ids"])
    return digest({"vocabulary": tokenizer.get_vocab(), "end": tokenizer.eos_token_id, "probe": probe})


def new_folder(folder: Path) -> None:
    """Makes the folder of a store to come; called before the work that fills it, too.

    Raises:
        RunError: it holds a store, which a training run may be reading, or it cannot be made.
    """
    if (folder / HEAD).exists():
        raise RunError(f"{folder} holds a store; remove it or choose another folder, stores are not overwritten")
    make_folder(folder)


def export(folder: Path, parts: Partition, threshold: int, base: Path) -> Store:
    """Writes a store.

    Args:
        folder: a new one.
        parts: what `partition.partition` or `Pipeline.parts` gives; where another program than Transformers drew the
            pre-samples, with `Pipeline.references` as its stored answers.
        threshold: the one that it was partitioned by.
        base: folder of the model, tokenizer included, that drew the pre-samples.

    Raises:
        RunError: `folder` holds a store; a training run may be reading it.
        MissingFileError: no safetensors in `base`.
        InputError: the tokenizer loses spaces, or ends prompts with its end token.
    """
    from dphlib.models.load import load_tokenizer

    new_folder(folder)
    tokenizer = load_tokenizer(base)
    hashes = origin(base, tokenizer)
    rehearsed = [reference.problem for reference in parts.references]
    rows: dict[str, tuple[Sequence[Problem | Reference], Sequence[Problem]]]
    rows = {EXPLORATION: (parts.exploration, parts.exploration), REFERENCES: (parts.references, rehearsed)}
    for name, (stored, problems) in rows.items():
        pairs = zip(stored, prompt_ids(tokenizer, problems), strict=True)
        whole = ({**row.to_json(), "prompt_ids": ids} for row, ids in pairs)
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in whole)
        write_text(folder / name, "".join(lines))
    named = {name: [problem.id for problem in getattr(parts, name)] for name in ("near_perfect", "exploration")}
    files = {name: sha256_file(folder / name) for name in (EXPLORATION, REFERENCES)}
    # Last: now the store is whole.
    write_json(folder / HEAD, {"threshold": threshold, **hashes, "files": files, **named})
    return read(folder)


def read(folder: Path) -> Store:
    """The store in `folder`.

    Raises:
        MissingFileError: no store there; the stage's own folder is not one, for it does not name its base.
        RunError: a file of it is damaged, or of an earlier version.
    """
    head: Mapping[str, Any] = {}
    if (folder / HEAD).is_file():
        try:
            head = json.loads((folder / HEAD).read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(f"{folder / HEAD} is damaged ({error}); copy or export the store again") from error
    if "base_sha256" not in head:
        raise MissingFileError(f"no store in {folder}: write one by `dph partition --export FOLDER` and name that")
    for name, stated in head["files"].items():
        if not (folder / name).is_file() or sha256_file(folder / name) != stated:
            raise RunError(f"{folder / name} is not what was exported (sha256); copy or export the store again")
    explored, explored_ids = _rows(folder / EXPLORATION)
    stored, stored_ids = _rows(folder / REFERENCES)
    return Store(
        exploration=tuple(Problem.from_json(row) for row in explored),
        references=tuple(Reference.from_json(row) for row in stored),
        exploration_ids=explored_ids,
        prompt_ids=stored_ids,
        threshold=head["threshold"],
        base_sha256=head["base_sha256"],
        tokenizer_sha256=head["tokenizer_sha256"],
    )


def _rows(file: Path) -> tuple[list[dict[str, Any]], tuple[tuple[int, ...], ...]]:
    """The rows of a store's file, and apart from them the token ids of each one's prompt."""
    rows = read_jsonl(file)
    if any("prompt_ids" not in row for row in rows):
        raise RunError(f"{file} holds no token ids of prompts; export it again by this version")
    ids = tuple(tuple(row.pop("prompt_ids")) for row in rows)
    return rows, ids
