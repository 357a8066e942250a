"""A partition as verl reads it: prompts and stored answers in parquet, bound to their base and tokenizer by hash.

`write_store` makes one file of both sets, `write_prompts` one of prompts alone (for validation); `dph verl` calls both.
A row has the columns that verl's recipes have (`data_source`, `prompt`, `agent_name`, `reward_model`, `extra_info`).

1. Prompts are stored as token ids too, those that the policy saw when it was pre-sampled. Nothing is tokenised again
   and no chat template is applied in training, so a stored answer continues the very tokens that it was drawn after.
2. The file's metadata hold the hashes of base and tokenizer that `store` holds. `check_store` refuses another base:
   log-probabilities of one model are no reference for another, and would be learnt without any error.

It knows neither torch nor verl; what reads the file in training is `verl.plugin`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dphlib import __version__
from dphlib.integrations.store import Origin, origin
from dphlib.partition import Partition, Reference
from dphlib.runtime.files import InputError, RunError, atomic_path
from dphlib.sampling.protocol import prompt_ids
from dphlib.types import Problem

EXPLORE_LOOP, REPLAY_LOOP = "dph_explore", "dph_replay"
"""Agent loops: a rollout that is learnt from by reward, and the replay of a stored answer."""
TRAIN, VALIDATION = "train.parquet", "validation.parquet"
_FORMAT = 1
_METADATA = b"dphlib"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileHead(Origin):
    """What a file says of itself.

    Args:
        exploration, references: rows of prompts to roll out on, and of stored answers; the latter come last.
        made_by: version of dphlib.
        format: of the file.
    """

    exploration: int
    references: int
    made_by: str = __version__
    format: int = _FORMAT


def write_store(parts: Partition, base: Path, tokenizer: Any, out: Path) -> Path:
    """Writes D_exp and the stored answers to `out`/train.parquet.

    Args:
        parts: the partition with its reference answers, as `pipeline.Pipeline.parts` reads it from a run's folder.
        base: folder of the initial policy that drew the answers, with its tokenizer.
        tokenizer: that tokenizer, loaded.
        out: folder.

    Raises:
        InputError: no prompt to explore, no stored answer, or one whose log-probabilities are not one per token.
    """
    if not parts.exploration or not parts.references:
        raise InputError(
            f"D_exp has {len(parts.exploration)} prompts and {len(parts.references)} answers are stored; both are"
            " needed: choose another threshold or pre-sample more problems"
        )
    ids = iter(prompt_ids(tokenizer, [*parts.exploration, *(reference.problem for reference in parts.references)]))
    rows = [_row(index, problem, next(ids)) for index, problem in enumerate(parts.exploration)]
    for reference in parts.references:
        if not reference.token_ids or len(reference.token_ids) != len(reference.logprobs):
            raise InputError(
                f"stored answer to {reference.problem.id}: {len(reference.token_ids)} tokens,"
                f" {len(reference.logprobs)} log-probabilities; pre-sample again"
            )
        rows.append(_row(len(rows), reference.problem, next(ids), reference))
    return _write(
        out / TRAIN,
        rows,
        FileHead(**origin(base, tokenizer), exploration=len(parts.exploration), references=len(parts.references)),
    )


def write_prompts(problems: Sequence[Problem], base: Path, tokenizer: Any, out: Path) -> Path:
    """Writes problems that are only answered, such as a validation suite, to `out`/validation.parquet."""
    if not problems:
        raise ValueError("no problem to write")
    ids = prompt_ids(tokenizer, problems)
    rows = [_row(index, problem, ids[index]) for index, problem in enumerate(problems)]
    return _write(out / VALIDATION, rows, FileHead(**origin(base, tokenizer), exploration=len(problems), references=0))


def read_store(path: Path) -> tuple[Any, FileHead]:
    """The rows as a `pyarrow.Table`, and what the file says of itself.

    Raises:
        RunError: the file was not written by `write_store`, or by a version with another format.
    """
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import read_table

    way_out = "write it by `dph verl`"
    try:
        table = read_table(path)
    except (ArrowInvalid, FileNotFoundError) as error:
        raise RunError(f"{path} is no parquet file ({error}); {way_out}") from error
    described = json.loads((table.schema.metadata or {}).get(_METADATA, b"{}"))
    if described.get("format") != _FORMAT:
        raise RunError(f"{path} has format {described.get('format')}, {_FORMAT} is needed; {way_out}")
    store = FileHead(**described)
    if store.exploration + store.references != table.num_rows:
        raise RunError(f"{path} has {table.num_rows} rows, not {store.exploration} + {store.references}; {way_out}")
    return table, store


def check_store(store: FileHead, folder: Path, tokenizer: Any) -> None:
    """Refuses a store that was not made with this tokenizer and the weights in `folder`.

    Raises:
        RunError: another tokenizer, or another base.
        MissingFileError: no weights there.
    """
    if differing := store.differs(folder, tokenizer):
        what, stored, found = differing
        raise RunError(
            f"the stored answers were made with another {what}: sha256 {stored}, {folder} has {found};"
            " train the base that was pre-sampled, or pre-sample this one and write the store again"
        )


def _row(index: int, problem: Problem, prompt_ids: Sequence[int], stored: Reference | None = None) -> dict[str, Any]:
    return {
        "data_source": problem.suite,
        "prompt": [{"role": "user", "content": problem.prompt}],
        "agent_name": REPLAY_LOOP if stored else EXPLORE_LOOP,
        "reward_model": {"style": "rule", "ground_truth": problem.gold},
        "extra_info": {
            "index": index,
            "problem_id": problem.id,
            "kind": problem.kind,
            "db_id": problem.db_id or "",
            "prompt_ids": list(prompt_ids),
            "answer_ids": list(stored.token_ids) if stored else [],
            "answer_logprobs": list(stored.logprobs) if stored else [],
        },
    }


def _write(path: Path, rows: Sequence[dict[str, Any]], store: FileHead) -> Path:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    text, ids = pa.string(), pa.list_(pa.int64())
    info = {"index": pa.int64(), "problem_id": text, "kind": text, "db_id": text, "prompt_ids": ids, "answer_ids": ids}
    schema = pa.schema(
        {
            "data_source": text,
            "prompt": pa.list_(pa.struct({"role": text, "content": text})),
            "agent_name": text,
            "reward_model": pa.struct({"style": text, "ground_truth": text}),
            "extra_info": pa.struct({**info, "answer_logprobs": pa.list_(pa.float64())}),
        },
        metadata={_METADATA: json.dumps(asdict(store)).encode()},
    )
    with atomic_path(path) as temporary:
        write_table(pa.Table.from_pylist(list(rows), schema=schema), temporary)
    return path
