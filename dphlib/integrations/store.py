"""A partition on its own: what another trainer reads, told whose tokens and whose log-probabilities it holds.

    partition.json      threshold, hashes of base and tokenizer, ids of D_pef and D_exp, sha256 of the two files below
    exploration.jsonl   the problems of D_exp
    references.jsonl    the stored answers, each with its problem, as the stage `partition` writes them

A stored log-probability means something only beside the weights that gave it, a token id only beside its tokenizer:
`Store.refuse_other` compares both by hash, because a wrong one trains without an error and to no purpose.

It needs no torch to read; `export` and `refuse_other` hash the base's weights and import it. Not here: the formats of
single trainers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dphlib.partition import Partition, Reference
from dphlib.runtime.files import (
    MissingFileError,
    RunError,
    digest,
    make_folder,
    read_jsonl,
    sha256_file,
    write_json,
    write_text,
)
from dphlib.types import Problem

HEAD, EXPLORATION, REFERENCES = "partition.json", "exploration.jsonl", "references.jsonl"
_PROBE = "SELECT count(*) FROM t WHERE a = 12 ; \\boxed{3}\n question : 4 + 5"


@dataclass(frozen=True, slots=True)
class Store:
    """The two sets of prompts and the stored answers, and what they belong to.

    Args:
        exploration: the problems of D_exp.
        references: stored answers with the log-probabilities that the base gave them, nats, temperature 1.
        threshold: correct pre-samples from which a prompt was near-perfect.
        base_sha256: of the weights, see `adapters.describe_base`; a copy of the files has the same.
        tokenizer_sha256: see `tokenizer_sha256`.
    """

    exploration: tuple[Problem, ...]
    references: tuple[Reference, ...]
    threshold: int
    base_sha256: str
    tokenizer_sha256: str

    def refuse_other(self, base: Path, tokenizer: Any) -> None:
        """Raises ValueError when `tokenizer`, or the weights in the folder `base`, are not those of the store."""
        from dphlib.models.adapters import describe_base

        for what, ours, theirs in (
            ("tokenizer", tokenizer_sha256(tokenizer), self.tokenizer_sha256),
            ("base model", describe_base(base, "other").sha256, self.base_sha256),
        ):
            if ours != theirs:
                raise ValueError(
                    f"the store was made with another {what} (sha256 {theirs[:12]}, this one is {ours[:12]}): train "
                    f"from the {what} of the store, or pre-sample and partition with this one"
                )


def tokenizer_sha256(tokenizer: Any) -> str:
    """Hash of what a Transformers tokenizer does: its vocabulary, its end token, and how it cuts a text with SQL,
    digits and braces. Padding, truncation and the form of its files are left out."""
    probe = list(tokenizer(text=_PROBE)["input_ids"])
    return digest({"vocabulary": tokenizer.get_vocab(), "end": tokenizer.eos_token_id, "probe": probe})


def new_folder(folder: Path) -> None:
    """Makes the folder of a store to come; called before the work that fills it, too.

    Raises:
        FileExistsError: it holds a store; a training run may be reading it.
        RunError: it cannot be made.
    """
    if (folder / HEAD).exists():
        raise RunError(f"{folder} holds a store; remove it or choose another folder, stores are not overwritten")
    make_folder(folder)


def export(folder: Path, parts: Partition, threshold: int, base: Path) -> Store:
    """Writes a store that stands alone.

    Args:
        folder: a new one.
        parts: what `partition.partition` or `Pipeline.parts` gives.
        threshold: the one that it was partitioned by.
        base: folder of the model, tokenizer included, that drew the pre-samples.

    Raises:
        FileExistsError: `folder` holds a store; a training run may be reading it.
        FileNotFoundError: no safetensors in `base`.
    """
    from transformers import AutoTokenizer

    from dphlib.models.adapters import describe_base

    new_folder(folder)
    hashes = {
        "base_sha256": describe_base(base, "other").sha256,
        "tokenizer_sha256": tokenizer_sha256(AutoTokenizer.from_pretrained(base)),
    }
    for name, rows in ((EXPLORATION, parts.exploration), (REFERENCES, parts.references)):
        lines = (json.dumps(row.to_json(), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        write_text(folder / name, "".join(lines))
    ids = {name: [problem.id for problem in getattr(parts, name)] for name in ("near_perfect", "exploration")}
    files = {name: sha256_file(folder / name) for name in (EXPLORATION, REFERENCES)}
    write_json(folder / HEAD, {"threshold": threshold, **hashes, "files": files, **ids})  # last: now the store is whole
    return read(folder)


def read(folder: Path) -> Store:
    """The store in `folder`.

    Raises:
        FileNotFoundError: no store there; the stage's own folder is none, for it does not name its base.
        RunError: a file of it is damaged.
    """
    head: Mapping[str, Any] = {}
    if (folder / HEAD).is_file():
        head = json.loads((folder / HEAD).read_text(encoding="utf-8"))
    if "base_sha256" not in head:
        raise MissingFileError(f"no store in {folder}: write one by `dph partition --export FOLDER` and name that")
    for name, stated in head["files"].items():
        if not (folder / name).is_file() or sha256_file(folder / name) != stated:
            raise RunError(f"{folder / name} is not what was exported (sha256); copy or export the store again")
    return Store(
        tuple(Problem.from_json(row) for row in read_jsonl(folder / EXPLORATION)),
        tuple(Reference.from_json(row) for row in read_jsonl(folder / REFERENCES)),
        head["threshold"],
        head["base_sha256"],
        head["tokenizer_sha256"],
    )
