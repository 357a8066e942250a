"""What a sampler is: problems to answers, as token ids with the log-probabilities that the sampling policy gave them.

Token ids of prompts and answers are carried from here to the trainer and never made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dphlib.types import Answer, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How answers are drawn.

    Args:
        samples: answers per problem.
        temperature: 0 is greedy (then `samples` must be 1).
        top_p: nucleus mass; the log-probabilities returned are those without it.
        max_new_tokens: an answer that has not ended by then is truncated.
    """

    samples: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 48

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.samples != 1:
            raise ValueError(f"greedy decoding gives one answer, {self.samples} asked for")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, it must lie in (0, 1]")
        if self.samples < 1 or self.temperature < 0 or self.max_new_tokens < 1:
            raise ValueError(f"samples and max_new_tokens must be at least 1, temperature at least 0: {self}")


class Sampler(Protocol):
    def sample(self, problems: Sequence[Problem], config: SamplingConfig, seed: int) -> list[list[Answer]]:
        """`config.samples` answers for each problem, in the order of `problems`."""
        ...

    def sync(self, policy: Any) -> None:
        """Makes the next answers those of `policy` as it is now; called after each update, before sampling."""
        ...

    def record(self) -> dict[str, str | None]:
        """Which program and which adapter the next answers come from, for the rollouts' log row."""
        ...


def prompt_ids(tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> list[tuple[int, ...]]:
    """Token ids of the problems' prompts."""
    texts = [problem.prompt for problem in problems]
    return [tuple(ids) for ids in tokenizer(texts)["input_ids"]] if texts else []
