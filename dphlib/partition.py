"""Pre-samples to the paper's two sets: near-perfect prompts (D_pef) with reference answers, and the rest (D_exp).

A prompt is near-perfect when at least `threshold` of its k = 8 pre-sampled answers are correct: 6 for Llama and 7 for
Qwen, with an ablation of 6 against 8, by others' notes on the paper. The reference answer comes from one more draw and
is kept if it is correct too (the authors' code); a near-perfect prompt without one trains nothing and is counted.

For ablations there can be several stored answers per prompt, the one of the extra draw and then the correct ones among
the k pre-samples, of the same prompts; and for a control (`everywhere`) stored answers of all prompts that have a
correct one at all, D_exp's too. Stored answers are correct answers, so on a hard prompt they come from the initial
policy given that it is right, and a divergence to it is one to that conditional distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dphlib.runtime.files import InputError
from dphlib.types import Answer, Group, Problem


@dataclass(frozen=True, slots=True)
class Reference:
    """A stored answer of the initial policy.

    Args:
        problem: the near-perfect problem that it solves.
        token_ids: its tokens, end-of-sequence included.
        logprobs: what pi_ref gave each of them, nats, temperature 1, same length.
    """

    problem: Problem
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return {"problem": self.problem.to_json(), "token_ids": list(self.token_ids), "logprobs": list(self.logprobs)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Reference:
        return cls(Problem.from_json(row["problem"]), tuple(row["token_ids"]), tuple(row["logprobs"]))


class Partition(NamedTuple):
    near_perfect: list[Problem]
    exploration: list[Problem]
    references: list[Reference]


def partition(
    groups: Sequence[Group],
    threshold: int,
    extra: Sequence[Group] | None = None,
    answers: int = 1,
    everywhere: bool = False,
) -> Partition:
    """D_pef, D_exp and the stored reference answers.

    Args:
        groups: the pre-samples, one group per problem, all of the same size k.
        threshold: correct answers, of k, from which a prompt is near-perfect.
        extra: one more draw for near-perfect problems (others in it are ignored); its correct answer becomes the
            reference. Without it each near-perfect problem's first correct pre-sample does.
        answers: stored at most for each of these problems: after the extra one the first correct pre-samples.
        everywhere: store answers of every problem that has a correct one, in the extra draw or the pre-samples.

    Raises:
        ValueError: no group, groups of several sizes, a threshold outside 1..k, fewer than one stored answer, an answer
            without judgement.

    >>> partition([], 6)
    Traceback (most recent call last):
    ValueError: no pre-sampled group to partition
    """
    if not groups:
        raise ValueError("no pre-sampled group to partition")
    sizes = {len(group.answers) for group in groups}
    if len(sizes) != 1:
        raise ValueError(f"groups of different sizes {sorted(sizes)}: pre-sample every problem equally often")
    k = sizes.pop()
    if not 1 <= threshold <= k:
        raise InputError(f"threshold is {threshold}, it must lie in 1..{k}, the answers pre-sampled for each problem")
    if answers < 1:
        raise ValueError(f"answers is {answers}, at least 1 has to be stored for each near-perfect problem")
    for group in (*groups, *(extra or ())):
        for verdict in group.verdicts:
            if verdict.reward is None:
                raise ValueError(
                    f"problem {group.problem.id}: an answer could not be judged ({verdict.detail}); it must not "
                    "decide the partition: judge it again, or leave the problem out"
                )
    solved = [group for group in groups if group.correct >= threshold]
    near_perfect = {group.problem.id for group in solved}
    once_more = {group.problem.id: _correct(group) for group in extra or ()}
    references = []
    for group in groups:
        first = once_more.get(group.problem.id, [])
        if everywhere or (group.problem.id in near_perfect and (first or extra is None)):
            stored = [*first, *_correct(group)][:answers]
            references += [Reference(group.problem, answer.token_ids, answer.logprobs) for answer in stored]
    return Partition(
        [group.problem for group in solved],
        [group.problem for group in groups if group.problem.id not in near_perfect],
        references,
    )


def _correct(group: Group) -> list[Answer]:
    judged = zip(group.answers, group.verdicts, strict=True)
    return [answer for answer, verdict in judged if verdict.outcome == "correct"]
