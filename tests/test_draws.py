"""Answers of long stages outlive an interruption, and no stage is finished with an answer that was not judged."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pandas as pd
import pytest
from small import RewardsFirstToken, base_config, policy, save_policy, small_profile, sum_problems, tokenizer

from dphlib.experiment import draws, evaluate, policies
from dphlib.experiment.draws import KeptSampler, judged
from dphlib.experiment.pipeline import Pipeline
from dphlib.models.tuning import prepare
from dphlib.runtime.files import RunError
from dphlib.sampling.protocol import SamplingConfig
from dphlib.sampling.transformers import TransformersSampler
from dphlib.settings.stages import BackendConfig, TuningConfig
from dphlib.types import STYLE_COUNTS, Answer, Group, Verdict
from dphlib.verify import Verifier

pytestmark = pytest.mark.slow

FOUR = SamplingConfig(4, 1.0, 1.0, 5)
LOST = Verdict("infra_error", "worker died twice on the answer: SELECT 1")


class Fails:
    """Judges as `RewardsFirstToken`, but loses chosen answers the first so many times that it sees them."""

    def __init__(self, times: int, lost=lambda problem, answer: True) -> None:
        self.times, self.lost, self.seen, self.sizes = times, lost, {}, []

    def groups(self, problems, answers):
        found = RewardsFirstToken.groups(self, problems, answers)
        self.sizes.append(sum(map(len, answers)))
        return [replace(g, verdicts=tuple(map(self._verdict, (g.problem,) * 99, g.answers, g.verdicts))) for g in found]

    def _verdict(self, problem, answer, verdict):
        key = problem.id, answer.sample
        self.seen[key] = self.seen.get(key, 0) + 1
        return LOST if self.lost(problem, answer) and self.seen[key] <= self.times else verdict


# --- Judged once more ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn():
    problems = sum_problems(7)
    return problems, TransformersSampler(policy(), tokenizer()).sample(problems, FOUR, 3)


def test_what_was_lost_is_judged_once_more_and_nothing_else_is(drawn):
    lost = {("p2", 1), ("p2", 3), ("p6", 0)}
    verifier = Fails(1, lambda problem, answer: (problem.id, answer.sample) in lost)
    assert judged(verifier, *drawn) == RewardsFirstToken().groups(*drawn)
    assert verifier.sizes == [28, 3]


def test_nothing_is_judged_twice_without_need(drawn):
    verifier = Fails(0)
    assert judged(verifier, *drawn) == RewardsFirstToken().groups(*drawn) and verifier.sizes == [28]


def test_what_is_lost_twice_is_named_with_the_way_out(drawn):
    with pytest.raises(RunError) as raised:
        judged(Fails(2, lambda problem, answer: problem.id in ("p1", "p4")), *drawn)
    said = str(raised.value)
    assert said.startswith("out_of_domain: 8 of 28 answers could not be judged") and "run again" in said
    assert f"problem p1 ({LOST.detail}); problem p4 ({LOST.detail})." in said and "problem p2" not in said
    with pytest.raises(RunError, match=r"problem p4 \(.*; and 2 problems more\. The stage is not finished"):
        judged(Fails(2), *drawn)


def evaluated(verifier, sampler=None, model=None, **options):
    problems = {"out_of_domain": sum_problems(5)}
    who = evaluate.Identity("base", "main", 0, 0)
    return evaluate.evaluate(
        model or policy(),
        tokenizer(),
        problems,
        {"out_of_domain": 2},
        verifier,
        who,
        draw_seed=1,
        max_new_tokens=4,
        sampler=sampler,
        **options,
    )


def test_an_evaluation_judges_once_more_and_then_raises():
    whole = evaluated(RewardsFirstToken())
    pd.testing.assert_frame_equal(evaluated(Fails(1, lambda problem, answer: problem.id == "p3")), whole)
    with pytest.raises(RunError, match=r"problem p3 .* run again"):
        evaluated(Fails(2, lambda problem, answer: problem.id == "p3"))


class DrawsElsewhere(TransformersSampler):
    """Another program, whose log-probs are all off by a constant."""

    def record(self):
        return {"sampler": "elsewhere 1.0", "adapter_sha256": None}

    def sample(self, *given):
        return [[replace(a, logprobs=tuple(v - 0.3 for v in a.logprobs)) for a in g] for g in super().sample(*given)]


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_log_probs_that_are_compared_are_of_one_program(kind):
    """An untrained policy is as far from the base as the base: 0, whatever the sampler says."""
    model = prepare(policy(), TuningConfig(kind, rank=2, alpha=4))
    base = policy().requires_grad_(False) if kind == "full" else None
    options = {"model": model, "base": base, "base_samples": 1}
    records = evaluated(RewardsFirstToken(), DrawsElsewhere(model, tokenizer()), **options)
    sampled, greedy = (rows for _, rows in records.groupby(records["temperature"] == 0))
    assert len(sampled) == 5 and (sampled["compared_tokens"] > 0).all() and (sampled["log_ratio"] == 0).all()
    assert len(greedy) == 5 and not greedy[["compared_tokens", "log_ratio"]].any(axis=None)
    own = evaluated(RewardsFirstToken(), TransformersSampler(model, tokenizer()), **options)
    assert own["log_ratio"].to_list() == pytest.approx(records["log_ratio"].to_list(), abs=1e-3)


ANSWERS = (r"Directly : \boxed{1}", r"Directly : \boxed{1}", r"Inside : \boxed{01}", r"Inside : \boxed{2}", "One")


class Scripted:
    """Answers every problem alike: `ANSWERS`, each a token longer than the one before."""

    def record(self):
        return {"sampler": "scripted", "adapter_sha256": None}

    def sample(self, problems, config, seed):
        texts = ANSWERS if config.temperature else ANSWERS[:1]
        return [[self._answer(problem.id, *given) for given in enumerate(texts)] for problem in problems]

    def _answer(self, problem_id, i, text):
        ids, logprobs = (7,) * (i + 1), (-0.5,) * (i + 1)
        return Answer(problem_id, i, ids, logprobs, text, truncated=i == 3, entropy=0.25 * i, prompt_ids=(3, 4))


class RewardsOne:
    def groups(self, problems, answers):
        verdicts = [tuple(Verdict("correct" if "1}" in a.text else "wrong") for a in group) for group in answers]
        return [Group(*one) for one in zip(problems, map(tuple, answers), verdicts, strict=True)]


def test_the_answers_to_a_problem_are_counted():
    model = prepare(policy(), TuningConfig("lora", rank=2, alpha=4))
    records = evaluated(RewardsOne(), Scripted(), model, base_samples=2)
    counts = ["drawn", "n", "correct", *STYLE_COUNTS, "distinct", "tokens", "truncated", "entropy", "compared_tokens"]
    for row in records[records["temperature"] == 1][counts].to_numpy().tolist():
        assert row == [5, 5, 3, 2, 0, 2, 0, 1, 2, 15, 1, 10.0, 3]
    for row in records[records["temperature"] == 0][counts].to_numpy().tolist():
        assert row == [1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0.0, 0]
    assert len(records) == 10 and records["drawn"].dtype == "int32"
    unknown = evaluated(RewardsOne(), Scripted(), styles=False)
    assert not unknown[list(STYLE_COUNTS)].any(axis=None)


# --- Kept parts ---------------------------------------------------------------------------------------


class Counting(TransformersSampler):
    """Notes how many problems each call has; the call after the last allowed one is cut off."""

    def __init__(self, allowed: int = 99) -> None:
        super().__init__(policy(), tokenizer())
        self.allowed, self.calls = allowed, []

    def sample(self, problems, config, seed):
        if len(self.calls) == self.allowed:
            raise KeyboardInterrupt
        self.calls.append(len(problems))
        return super().sample(problems, config, seed)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(draws, "PART", 12)  # three problems of four answers


def test_an_interrupted_call_goes_on_to_the_answers_of_an_uninterrupted_one(tmp_path, small_parts, capsys):
    problems = sum_problems(7)
    whole = KeptSampler(Counting(), tmp_path / "whole", {}).sample(problems, FOUR, 3)
    assert [[a.problem_id for a in group] for group in whole] == [[p.id] * 4 for p in problems]
    with pytest.raises(KeyboardInterrupt):
        KeptSampler(Counting(2), tmp_path / "cut", {}).sample(problems, FOUR, 3)
    assert capsys.readouterr().err == ""
    rest = Counting()
    assert KeptSampler(rest, tmp_path / "cut", {}).sample(problems, FOUR, 3) == whole and rest.calls == [1]
    assert "goes on: 2 of 3 parts" in capsys.readouterr().err


def test_parts_do_not_share_their_random_numbers(tmp_path, small_parts):
    same = [replace(problem, prompt="question : 1 + 1 answer :") for problem in sum_problems(6)]
    groups = KeptSampler(Counting(), tmp_path, {}).sample(same, FOUR, 3)
    assert [a.token_ids for g in groups[:3] for a in g] != [a.token_ids for g in groups[3:] for a in g]


def test_a_part_is_used_for_what_it_was_drawn_for_alone(tmp_path, small_parts):
    class Other(Counting):
        def record(self):
            return {"sampler": "vllm 0", "adapter_sha256": "0a"}

    problems = sum_problems(3)
    other_prompt = [replace(problems[0], prompt="question : 5 + 5 answer :"), *problems[1:]]
    KeptSampler(Counting(), tmp_path, {"batch_rows": 4}).sample(problems, FOUR, 3)
    for kind, decides, asked, config, seed in (
        (Counting, {"batch_rows": 5}, problems, FOUR, 3),
        (Other, {"batch_rows": 4}, problems, FOUR, 3),
        (Counting, {"batch_rows": 4}, other_prompt, FOUR, 3),
        (Counting, {"batch_rows": 4}, problems[::-1], FOUR, 3),
        (Counting, {"batch_rows": 4}, problems, replace(FOUR, top_p=0.9), 3),
        (Counting, {"batch_rows": 4}, problems, FOUR, 4),
    ):
        sampler = kind()
        KeptSampler(sampler, tmp_path, decides).sample(asked, config, seed)
        assert sampler.calls == [3]
    again = Counting(0)
    KeptSampler(again, tmp_path, {"batch_rows": 4}).sample(problems, FOUR, 3)


@pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda whole: b"", lambda whole: b"{}"])
def test_a_damaged_part_is_drawn_again(tmp_path, small_parts, damage):
    problems, sampler = sum_problems(6), Counting()
    whole = KeptSampler(sampler, tmp_path, {}).sample(problems, FOUR, 3)
    part = sorted(tmp_path.iterdir())[0]
    part.write_bytes(damage(part.read_bytes()))
    assert KeptSampler(sampler, tmp_path, {}).sample(problems, FOUR, 3) == whole and sampler.calls == [3, 3, 3]


def test_numbers_and_texts_come_back_as_they_were(tmp_path, small_parts):
    answer = Answer("p0", 0, (3, 1), (-0.1, float("-inf")), "\u2028 \ud800 é", True)  # vLLM gives no entropy

    class One(Counting):
        def sample(self, problems, config, seed):
            return [[answer]]

    sampler = KeptSampler(One(), tmp_path, {})
    sampler.sample(sum_problems(1), FOUR, 3)
    ((back,),) = sampler.sample(sum_problems(1), FOUR, 3)
    assert replace(back, entropy=0.0) == replace(answer, entropy=0.0) and back.entropy != back.entropy


# --- Whole stages -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_profile(tmp_path_factory):
    """The small profile with a base of its own, which is what a GPU profile has."""
    base = base_config(save_policy(tmp_path_factory.mktemp("base"), width=32), 32)
    settings = small_profile(base=base, backend=BackendConfig("transformers", batch_rows=16))
    return replace(
        settings,
        train=replace(settings.train, max_new_tokens=4),
        evaluation=replace(settings.evaluation, samples={"in_domain": 8, "cross_domain": 8}, max_new_tokens=4),
    )


@pytest.fixture(scope="module")
def begun(tmp_path_factory, long_profile):
    """A run folder with problems and databases, which take longest here."""
    root = tmp_path_factory.mktemp("begun")
    Pipeline(root, long_profile).world()
    return root


@pytest.mark.parametrize("stage", ["presample", "evaluate_one"])
def test_an_interrupted_stage_draws_only_what_is_left(tmp_path, long_profile, begun, stage, monkeypatch, capsys):
    monkeypatch.setenv(policies.DEVICE, "cpu")
    monkeypatch.setattr(draws, "PART", 32)  # four problems of eight answers
    roots = [shutil.copytree(begun, tmp_path / name) for name in ("whole", "cut")]
    file = "groups.jsonl" if stage == "presample" else "records.parquet"
    draw, calls = TransformersSampler.sample, []

    def counted(self, problems, config, seed):
        if len(calls) == cut:
            raise KeyboardInterrupt
        calls.append(len(problems))
        return draw(self, problems, config, seed)

    monkeypatch.setattr(TransformersSampler, "sample", counted)
    cut = None
    whole = getattr(Pipeline(roots[0], long_profile), stage)().path / file
    count, cut = len(calls), len(calls) // 2
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        getattr(Pipeline(roots[1], long_profile), stage)()
    (left,) = (roots[1] / "stages").glob(".work-*")
    assert len(list(left.iterdir())) == cut > 1
    calls.clear()
    cut = None
    resumed = getattr(Pipeline(roots[1], long_profile), stage)().path / file
    assert len(calls) == count - count // 2 and "drawing answers goes on" in capsys.readouterr().err
    assert resumed.read_bytes() == whole.read_bytes()
    assert not left.exists(), "answers go when the stage is finished"


def test_answers_that_could_not_be_judged_are_not_drawn_again(tmp_path, long_profile, begun, monkeypatch):
    monkeypatch.setenv(policies.DEVICE, "cpu")
    root = shutil.copytree(begun, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Verifier, "groups", Fails(2).groups)
        with pytest.raises(RunError, match=r"train: 96 of 96 answers could not be judged.* run again"):
            Pipeline(root, long_profile).partition()
    assert not list((root / "stages").glob("presample-*")), "a reused stage would stop every partition after it"
    draw, calls = TransformersSampler.sample, []
    monkeypatch.setattr(TransformersSampler, "sample", lambda *a, **o: calls.append(a[2].samples) or draw(*a, **o))
    assert not Pipeline(root, long_profile).presample().reused
    assert calls == [1], "of the k answers none, the extra one had not been drawn"
