"""A policy and suites to a tidy table: greedy and sampled answers, verified and counted, a row per problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dphlib.experiment import policies
from dphlib.experiment.draws import judged, sampling
from dphlib.models.tuning import initial_policy
from dphlib.runtime.machine import deterministic
from dphlib.sampling.protocol import Sampler, SamplingConfig
from dphlib.sampling.transformers import TransformersSampler
from dphlib.settings.profiles import Profile
from dphlib.training.scoring import drawn_by_policy, scored
from dphlib.types import STYLE_COUNTS, EvalRecord, Group, Problem
from dphlib.verify.verifier import Verifier, extracted
from dphlib.world.templates import style_of

_WHOLE = [name for name, kind in EvalRecord.__annotations__.items() if kind == "int"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Which run the evaluated policy belongs to; see `EvalRecord`."""

    method: str
    variant: str
    seed: int
    step: int


def evaluate(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    suites: Mapping[str, Sequence[Problem]],
    samples: Mapping[str, int],
    verifier: Verifier,
    identity: Identity,
    *,
    draw_seed: int,
    max_new_tokens: int,
    greedy: bool = True,
    base: PreTrainedModel | None = None,
    base_samples: int = 0,
    sampler: Sampler | None = None,
    styles: bool = True,
    on_done: Callable[[int], None] = lambda problems_done: None,
) -> pd.DataFrame:
    """Every suite in `samples`, `samples[suite]` draws per problem at temperature 1 without top-p, and greedy.

    Args:
        suites: suite -> problems; must hold each suite of `samples`.
        draw_seed: of the draws; each run has its own (`Pipeline.answered`), so that draws of two runs are independent.
        greedy: also decode greedily.
        base: the initial policy, beside one that is trained whole. An adapted policy needs none.
        base_samples: draws of each problem whose log-probs under both policies are compared (`log_ratio`), the policy's
            by the program that computes the base's where another one drew.
        sampler: draws the answers; by default the policy itself through Transformers.
        styles: count the answers' styles; False for problems whose answers have none, as those of data sets.

    Returns:
        One row per problem and decoding setting, columns as in `EvalRecord`.

    Raises:
        ValueError: a suite that is absent or has no problem.
        RunError: an answer could not be judged, and a second time neither.
    """
    rows: list[EvalRecord] = []
    sampler = sampler or TransformersSampler(policy, tokenizer)
    done = 0
    for suite, count in samples.items():
        problems = suites.get(suite, ())
        if not problems:
            raise ValueError(f"suite {suite!r} has no problem; known suites: {sorted(suites)}")
        settings = [SamplingConfig(count, 1.0, 1.0, max_new_tokens)]
        if greedy:
            settings.append(SamplingConfig(1, 0.0, 1.0, max_new_tokens))
        for setting in settings:
            groups = judged(verifier, problems, sampler.sample(problems, setting, draw_seed))
            compared = [(0, 0.0)] * len(groups)
            if base_samples and setting.temperature:
                compared = _compared(policy, base, tokenizer, groups, base_samples, drawn_by_policy(sampler))
            rows += [
                _record(group, setting, identity, ratio, styles) for group, ratio in zip(groups, compared, strict=True)
            ]
        done += len(problems)
        on_done(done)
    return pd.DataFrame([asdict(row) for row in rows]).astype(dict.fromkeys(_WHOLE, "int32"))


def build(
    out: Path,
    settings: Profile,
    base: Path,
    trained: Path | None,
    databases: Path,
    suites: Mapping[str, Sequence[Problem]],
    samples: Mapping[str, int],
    identity: Identity,
    *,
    draw_seed: int,
    greedy: bool,
    base_samples: int,
    report: Callable[[float], None],
) -> None:
    """Lets one policy answer and writes `records.parquet` to `out`.

    Args:
        out: folder of the stage.
        base: folder of the initial policy.
        trained: folder of a trained policy, None for the initial one itself.
        greedy: also greedy answers.
        base_samples: draws of each problem whose log-probs under the initial policy are computed too.
        report: called with the share of the problems that are answered.
    """
    deterministic(policies.threads(settings), policies.placement_of(settings).device)
    policy, tokenizer = policies.load_trained(settings, base, trained)
    initial = None if trained else policy
    if base_samples and trained and not hasattr(policy, "disable_adapter"):
        initial = policies.load_initial(settings, base)[0]
    total = sum(map(len, suites.values()))
    with (
        Verifier(databases, policies.judges(settings)) as verifier,
        sampling(settings, base, policy, tokenizer, out) as sampler,
    ):
        if trained:
            sampler.sync(policy)
        records = evaluate(
            policy,
            tokenizer,
            suites,
            samples,
            verifier,
            identity,
            draw_seed=draw_seed,
            max_new_tokens=settings.evaluation.max_new_tokens,
            greedy=greedy,
            base=initial,
            base_samples=base_samples,
            sampler=sampler,
            styles=settings.data is None,
            on_done=lambda done: report(done / total),
        )
    records.to_parquet(out / "records.parquet", index=False)


def _compared(
    policy: PreTrainedModel,
    base: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[Group],
    samples: int,
    drawn_by_policy: bool,
) -> list[tuple[int, float]]:
    """Of the first `samples` answers of each group: tokens, and log-prob under the policy less that under the base."""
    answers = [answer for group in groups for answer in group.answers[:samples]]

    def sums(model: PreTrainedModel) -> list[float]:
        logprobs = scored(model, tokenizer.pad_token_id, [(a.prompt_ids, a.token_ids) for a in answers])
        return [sum(logprobs_T.tolist()) for logprobs_T in logprobs]

    ours = [sum(answer.logprobs) for answer in answers] if drawn_by_policy else sums(policy)
    with initial_policy(policy, base) as initial:
        theirs = sums(initial)
    ratios = (_rounded(our) - _rounded(their) for our, their in zip(ours, theirs, strict=True))
    parts = [group.answers[:samples] for group in groups]
    return [(sum(len(a.token_ids) for a in part), sum(next(ratios) for _ in part)) for part in parts]


def _rounded(nats: float) -> float:
    """To four decimals: their sums, rounded again, are the same in any order, and take half the space in a file."""
    return round(nats, 4)


def _record(
    group: Group, setting: SamplingConfig, identity: Identity, compared: tuple[int, float], styles: bool
) -> EvalRecord:
    problem, answers = group.problem, group.answers
    told = Counter(style_of(answer.text) for answer in answers) if styles else Counter()
    right = (a.text for a, verdict in zip(answers, group.verdicts, strict=True) if verdict.outcome == "correct")
    style_counts: dict[str, Any] = {name: told[name] for name in STYLE_COUNTS}
    return EvalRecord(
        **asdict(identity),
        suite=problem.suite,
        subset=problem.meta.get("family", ""),
        problem_id=problem.id,
        temperature=setting.temperature,
        top_p=setting.top_p,
        max_new_tokens=setting.max_new_tokens,
        drawn=len(answers),
        n=sum(verdict.reward is not None for verdict in group.verdicts),
        correct=group.correct,
        **style_counts,
        distinct=len({extracted(problem, text) for text in right}),
        tokens=sum(len(answer.token_ids) for answer in answers),
        truncated=sum(answer.truncated for answer in answers),
        entropy=round(sum(_rounded(a.entropy) * len(a.token_ids) for a in answers if a.token_ids), 4),
        compared_tokens=compared[0],
        log_ratio=round(compared[1], 4),
    )
