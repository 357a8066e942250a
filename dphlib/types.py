"""The contracts between the stages: a problem, an answer, its verdict, a group, an evaluated record.

A stage reads some of these and writes others; nothing else passes from one stage to the next.
Everything here is plain data: no torch, no file access.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

Kind = Literal["sql", "math"]
Outcome = Literal["correct", "wrong", "no_answer", "invalid", "forbidden", "timeout", "too_large", "infra_error"]
OUTCOMES: tuple[str, ...] = get_args(Outcome)

VALIDATION = "validation"
"""The suite by which the stopping point and coefficients are chosen; no claim is judged on it."""
GREEDY_SAMPLE = -1
"""Sample index of the greedy answer; sampled answers count from 0."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One verifiable prompt.

    Args:
        id: unique within its suite.
        suite: `train`, `in_domain`, `cross_domain`, `out_of_domain`, or a data set's name.
        kind: which verifier judges it.
        prompt: the whole text that the model sees, template applied.
        gold: gold SQL, or gold answer.
        db_id: database folder name (`sql` only).
        meta: descriptive labels, such as `family`; never shown to the model.
    """

    id: str
    suite: str
    kind: Kind
    prompt: str
    gold: str
    db_id: str | None = None
    meta: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "meta": dict(self.meta)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Problem:
        return cls(**row)


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled answer.

    Args:
        problem_id: the problem it answers.
        sample: index among the problem's answers, `GREEDY_SAMPLE` for the greedy one.
        token_ids: ids that the sampler emitted, the end-of-sequence token included when emitted.
        logprobs: log-probability in nats of each of `token_ids` under the sampling policy
            at temperature 1 and without top-p, same length.
        text: decoded answer, special tokens left out.
        truncated: the token limit ended it, not an end-of-sequence token.
        entropy: mean entropy in nats of the next-token distribution (temperature 1) over `token_ids`.
        prompt_ids: ids of the prompt as the sampler read it; not written to files.
    """

    problem_id: str
    sample: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    truncated: bool
    entropy: float = float("nan")
    prompt_ids: tuple[int, ...] = field(default=(), compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        row = asdict(self)
        del row["prompt_ids"]
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any], prompt_ids: Sequence[int] = ()) -> Answer:
        lists = {name: tuple(row[name]) for name in ("token_ids", "logprobs")}
        return cls(**{**row, **lists, "prompt_ids": tuple(prompt_ids)})


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier decided. `infra_error` is not a judgement: its reward is None, never 0."""

    outcome: Outcome
    detail: str = ""

    @property
    def reward(self) -> float | None:
        """1.0 for `correct`, None for `infra_error`, else 0.0."""
        if self.outcome == "infra_error":
            return None
        return 1.0 if self.outcome == "correct" else 0.0


@dataclass(frozen=True, slots=True)
class Group:
    """The answers to one problem with their verdicts, in the same order."""

    problem: Problem
    answers: tuple[Answer, ...]
    verdicts: tuple[Verdict, ...]

    def __post_init__(self) -> None:
        if len(self.answers) != len(self.verdicts):
            raise ValueError(f"problem {self.problem.id}: {len(self.answers)} answers, {len(self.verdicts)} verdicts")

    @property
    def correct(self) -> int:
        return sum(verdict.outcome == "correct" for verdict in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """Without the problem's text: its id replaces it."""
        answers = [answer.to_json() for answer in self.answers]
        return {"problem_id": self.problem.id, "answers": answers, "verdicts": [asdict(v) for v in self.verdicts]}

    @classmethod
    def from_json(cls, problems: Mapping[str, Problem], row: Mapping[str, Any]) -> Group:
        answers = tuple(Answer.from_json(answer) for answer in row["answers"])
        verdicts = tuple(Verdict(**verdict) for verdict in row["verdicts"])
        return cls(problems[row["problem_id"]], answers, verdicts)


@dataclass(frozen=True, slots=True)
class EvalRecord:
    """One problem as one policy answered it under one decoding setting: a row of `records.parquet`.

    Args:
        method: a name of `settings.methods.METHODS` or `CONTROLS`; `base` is the model before any RL.
        variant: `main`, or the one setting that differs from it, such as `eta=0.1`.
        seed: of the run; of a base model its index, see `base_of`.
        step: optimizer iterations done when the answers were drawn; 0 for the base.
        suite: evaluated suite.
        subset: part of the suite that has a figure of its own (a question family, a set of sums).
        problem_id: the problem.
        temperature, top_p, max_new_tokens: how the answers were drawn; temperature 0 is greedy decoding, one answer.
        drawn: answers.
        n: answers that were judged, which leaves out `infra_error`.
        correct: answers whose verdict was `correct`.
        direct, aliased, nested, stepwise, other: drawn answers of each solution style by their prefix, `other` where
            none fits; all 0 where the problems have no styles.
        distinct: different correct answers, by what the verifier extracts.
        tokens: emitted tokens of all answers.
        truncated: answers that the token limit ended.
        entropy: entropy in nats of the next-token distribution, summed over `tokens`; NaN where unknown.
        compared_tokens: tokens of the answers whose log-probabilities under the base were computed.
        log_ratio: log-probability under the policy less that under the base, nats, summed over `compared_tokens`.
    """

    method: str
    variant: str
    seed: int
    step: int
    suite: str
    subset: str
    problem_id: str
    temperature: float
    top_p: float
    max_new_tokens: int
    drawn: int
    n: int
    correct: int
    direct: int
    aliased: int
    nested: int
    stepwise: int
    other: int
    distinct: int
    tokens: int
    truncated: int
    entropy: float
    compared_tokens: int
    log_ratio: float


STYLE_COUNTS = ("direct", "aliased", "nested", "stepwise", "other")
"""The counts of styles in an `EvalRecord`; `other`, the last, is no style."""


def base_of(seed: int, bases: int) -> int:
    """Index of the base model, of so many, from which the run with a seed starts.

    >>> [base_of(seed, 6) for seed in (0, 5, 6)]
    [0, 5, 0]
    """
    return seed % bases
