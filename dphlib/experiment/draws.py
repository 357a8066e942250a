"""Answers of a stage: drawn in parts that outlive an interruption, and none of them left without a judgement.

Training has its checkpoints; pre-sampling and evaluation have what stands here, for a stage is whole or absent.

1. Where sampling takes hours (profiles with a base of their own) answers are kept in the stage's work folder, a part of
   the problems at a time. Where the parts end follows from the problems and their samples alone, and each part has a
   seed of its own, so a run that was interrupted draws what an uninterrupted one draws.
2. An answer that could not be judged is judged once more; if that fails too, the stage is not finished.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dphlib.experiment import policies
from dphlib.experiment.store import work_folder
from dphlib.models.load import load_tokenizer
from dphlib.runtime.files import RunError, append_jsonl, atomic_path, digest, say
from dphlib.runtime.machine import derive_seed, deterministic
from dphlib.sampling.protocol import Sampler, SamplingConfig
from dphlib.settings.profiles import Profile
from dphlib.settings.stages import PresampleConfig
from dphlib.types import Answer, Group, Problem
from dphlib.verify import Verifier

PART = 4096
"""Answers that are drawn, and kept, at a time: some minutes of a GPU, and more than an engine has under way at once."""
_NAMED = 5


@contextmanager
def sampling(
    settings: Profile, folder: Path, policy: Any, tokenizer: PreTrainedTokenizerBase, building: Path
) -> Iterator[Sampler]:
    """`policies.sampling` for the stage that is built in `building`, whose answers are kept where drawing is long."""
    with policies.sampling(settings, folder, policy, tokenizer) as sampler:
        if settings.small:  # minutes on a CPU: one call, as the recorded results have it
            yield sampler
        else:
            decides = {"batch_rows": settings.backend.batch_rows, "placement": str(policies.placement_of(settings))}
            yield KeptSampler(sampler, work_folder(building), decides)


class KeptSampler:
    """A sampler whose answers stay in a folder, part by part, and are read there the next time.

    Args:
        sampler: draws what is not there.
        folder: where the parts lie; it belongs to one policy, as a stage's work folder does.
        decides: what else decides the answers, beside problems, settings, seed and the sampler's own record.
    """

    def __init__(self, sampler: Sampler, folder: Path, decides: Mapping[str, Any]) -> None:
        self.sampler, self.folder, self.decides = sampler, folder, dict(decides)

    def sample(self, problems: Sequence[Problem], config: SamplingConfig, seed: int) -> list[list[Answer]]:
        """See `Sampler.sample`."""
        size = max(1, PART // config.samples)
        parts = [problems[start : start + size] for start in range(0, len(problems), size)]
        # Transformers numbers its draws from the seed on: with one seed, the parts' problems would share them.
        seeds = [derive_seed("part", seed, number) for number in range(len(parts))]
        paths = [self._path(part, config, own) for part, own in zip(parts, seeds, strict=True)]
        kept = [_read(path) for path in paths]
        if found := sum(answers is not None for answers in kept):
            say(f"drawing answers goes on: {found} of {len(parts)} parts are there")
        drawn = []
        for part, own, path, answers in zip(parts, seeds, paths, kept, strict=True):
            if answers is None:
                answers = self.sampler.sample(part, config, own)
                _write(path, answers)
            drawn += answers
        return drawn

    def sync(self, policy: Any) -> None:
        self.sampler.sync(policy)

    def record(self) -> dict[str, str | None]:
        return self.sampler.record()

    def _path(self, problems: Sequence[Problem], config: SamplingConfig, seed: int) -> Path:
        """A part's file, by the hash of all that decides its answers: what is stale has another name."""
        key = {"problems": [problem.to_json() for problem in problems], "config": config, "seed": seed}
        return self.folder / f"answers-{digest({**key, 'record': self.record(), 'decides': self.decides})}.json.gz"


def _write(path: Path, answers: Sequence[Sequence[Answer]]) -> None:
    rows = [{"prompt_ids": g[0].prompt_ids, "answers": [answer.to_json() for answer in g]} for g in answers]
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(json.dumps(rows).encode("ascii"), compresslevel=1))


def _read(path: Path) -> list[list[Answer]] | None:
    """The answers of a part; None where it is not there or not whole, by the file's own checksum."""
    try:
        rows = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, zlib.error, ValueError):
        return None
    return [[Answer.from_json(answer, row["prompt_ids"]) for answer in row["answers"]] for row in rows]


def judged(verifier: Verifier, problems: Sequence[Problem], answers: Sequence[Sequence[Answer]]) -> list[Group]:
    """The problems' answers with their verdicts, `Verifier.groups` where every answer has one.

    Raises:
        RunError: answers that could not be judged twice, with their problems and the way out.
    """
    groups = verifier.groups(problems, answers)
    left = [(group.problem, answer) for group in groups for answer in _unjudged(group)]
    if not left:
        return groups
    # A worker that the system killed is no fault of the answer. What the verifier remembers, a gold out of time, stays.
    again = verifier.groups([problem for problem, _ in left], [[answer] for _, answer in left])
    second = iter([group.verdicts[0] for group in again])
    groups = [
        replace(group, verdicts=tuple(next(second) if v.reward is None else v for v in group.verdicts))
        for group in groups
    ]
    failed = [
        (group.problem, verdict.detail) for group in groups for verdict in group.verdicts if verdict.reward is None
    ]
    if failed:
        why = {problem.id: " ".join(detail.split()) for problem, detail in failed}
        named = "; ".join(f"problem {name} ({detail})" for name, detail in list(why.items())[:_NAMED])
        more = f"; and {len(why) - _NAMED} problems more" if len(why) > _NAMED else ""
        count = f"{len(failed)} of {sum(len(group.answers) for group in groups)}"
        raise RunError(
            f"{failed[0][0].suite}: {count} answers could not be judged, in two attempts: {named}{more}. The stage is "
            "not finished; run again, and they are judged anew. What is named each time cannot be judged here:"
            " free memory, or take the problem out of its data set"
        )
    return groups


def _unjudged(group: Group) -> list[Answer]:
    judgements = zip(group.answers, group.verdicts, strict=True)
    return [answer for answer, verdict in judgements if verdict.reward is None]


def presample(
    out: Path,
    settings: Profile,
    base: Path,
    databases: Path,
    problems: Sequence[Problem],
    config: PresampleConfig,
    on_draw: Callable[[int], None],
) -> None:
    """Draws and verifies k answers per problem and one more, and writes them to `groups.jsonl` in `out`.

    Args:
        out: folder of the stage.
        base: folder of the initial policy.
        on_draw: called with the number of draws that are done, of 2.
    """
    deterministic(policies.threads(settings), policies.placement_of(settings).device)
    tokenizer = load_tokenizer(base)
    with (
        Verifier(databases, policies.judges(settings)) as verifier,
        sampling(settings, base, None, tokenizer, out) as sampler,
    ):
        for done, (draw, count) in enumerate((("k", config.k), ("extra", 1)), 1):
            setting = SamplingConfig(count, config.temperature, config.top_p, settings.train.max_new_tokens)
            answers = sampler.sample(problems, setting, derive_seed("presample", config.seed, draw))
            for group in judged(verifier, problems, answers):
                append_jsonl(out / "groups.jsonl", {"draw": draw, **group.to_json()})
            on_draw(done)
