"""A policy and suites to a tidy table: greedy and sampled answers, each verified, each a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

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
from dphlib.types import Answer, EvalRecord, Group, Problem
from dphlib.verify.verifier import Verifier, answer_hash
from dphlib.world.templates import style_of


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
        base_samples: draws of each problem whose log-probs under both policies are compared: `base_logprob` is filled,
            and `logprob` by the program that fills it, where another one drew.
        sampler: draws the answers; by default the policy itself through Transformers.
        styles: tell each answer's style; False for problems whose answers have none, as those of data sets.

    Returns:
        One row per answer, columns as in `EvalRecord`.

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
            compared = {}
            if base_samples and setting.temperature:
                answers = [answer for group in groups for answer in group.answers[:base_samples]]
                compared = _compared(policy, base, tokenizer, answers, drawn_by_policy(sampler))
            rows += _records(groups, setting, identity, compared, styles)
        done += len(problems)
        on_done(done)
    return pd.DataFrame([asdict(row) for row in rows])


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
    plain: bool,
    report: Callable[[float], None],
) -> None:
    """Lets one policy answer and writes `records.parquet` to `out`.

    Args:
        out: folder of the stage.
        base: folder of the initial policy.
        trained: folder of a trained policy, None for the initial one itself.
        plain: also greedy answers, and the initial policy's log-probs of some draws.
        report: called with the share of the problems that are answered.
    """
    deterministic(policies.threads(settings), policies.placement_of(settings).device)
    policy, tokenizer = policies.load_trained(settings, base, trained)
    initial = None if trained else policy
    if plain and trained and not hasattr(policy, "disable_adapter"):
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
            greedy=plain,
            base=initial,
            base_samples=settings.evaluation.base_samples if plain else 0,
            sampler=sampler,
            styles=settings.data is None,
            on_done=lambda done: report(done / total),
        )
    records.to_parquet(out / "records.parquet", index=False)


def _compared(
    policy: PreTrainedModel,
    base: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    answers: Sequence[Answer],
    drawn_by_policy: bool,
) -> dict[tuple[str, int], tuple[float, float]]:
    """Log-probs of answers under the policy and under the initial one, by (problem, sample)."""

    def sums(model: PreTrainedModel) -> list[float]:
        logprobs = scored(model, tokenizer.pad_token_id, [(a.prompt_ids, a.token_ids) for a in answers])
        return [sum(logprobs_T.tolist()) for logprobs_T in logprobs]

    ours = [sum(answer.logprobs) for answer in answers] if drawn_by_policy else sums(policy)
    with initial_policy(policy, base) as initial:
        theirs = sums(initial)
    pairs = zip(ours, theirs, strict=True)
    return {(answer.problem_id, answer.sample): pair for answer, pair in zip(answers, pairs, strict=True)}


def _records(
    groups: Sequence[Group],
    setting: SamplingConfig,
    identity: Identity,
    compared: Mapping[tuple[str, int], tuple[float, float]],
    styles: bool,
) -> list[EvalRecord]:
    rows = []
    for group in groups:
        problem = group.problem
        for answer, verdict in zip(group.answers, group.verdicts, strict=True):
            drawn = sum(answer.logprobs), float("nan")
            logprob, base_logprob = compared.get((problem.id, answer.sample), drawn)
            rows.append(
                EvalRecord(
                    **asdict(identity),
                    suite=problem.suite,
                    subset=problem.meta.get("family", ""),
                    problem_id=problem.id,
                    sample=answer.sample,
                    correct=verdict.outcome == "correct",
                    outcome=verdict.outcome,
                    style=style_of(answer.text) if styles else "",
                    answer_hash=answer_hash(problem, answer.text),
                    tokens=len(answer.token_ids),
                    truncated=answer.truncated,
                    entropy=round(answer.entropy, 4),
                    logprob=round(logprob, 4),
                    base_logprob=round(base_logprob, 4),
                    temperature=setting.temperature,
                    top_p=setting.top_p,
                    max_new_tokens=setting.max_new_tokens,
                )
            )
    return rows
