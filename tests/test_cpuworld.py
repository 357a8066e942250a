"""The CPU world: content decides by execution, and nothing but the seed decides the world."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import islice

import pytest
from small import WORLD, tokenizer

from dphlib.verify import Verifier
from dphlib.world import people_places, sums
from dphlib.world.templates import STYLES, style_of, sum_answer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return folder, people_places.build_world(WORLD, folder)


def test_the_same_seed_makes_the_same_world_of_the_sizes_asked_for(world, tmp_path):
    folder, suites = world
    assert people_places.build_world(WORLD, tmp_path) == suites
    assert {suite: len(problems) for suite, problems in suites.items()} == dict(WORLD.problems)
    ids = [problem.db_id for problems in suites.values() for problem in problems if problem.db_id]
    assert len(ids) == len(set(ids)), "no two problems share a database"
    for problem in suites["train"]:
        path = f"database/{problem.db_id}/{problem.db_id}.sqlite"
        dumps = [list(sqlite3.connect(root / path).iterdump()) for root in (folder, tmp_path)]
        assert dumps[0] == dumps[1]


def test_every_word_of_prompts_and_golds_is_in_the_tokenizer(world):
    _, suites = world
    for problem in (p for problems in suites.values() for p in problems):
        for text in (problem.prompt, problem.gold):
            ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
            assert tokenizer().unk_token_id not in ids
            assert tokenizer().decode(ids) == text


def test_the_corpus_has_each_familys_styles_as_its_habits_say_and_slips_as_often_as_said():
    families = {family.name: family for family in sums.families(WORLD)}
    pairs = [pair for pair in islice(people_places.corpus(WORLD, random.Random(0)), 40_000) if "\\boxed" in pair[1]]
    styles, wrong = defaultdict(Counter), 0
    for prompt, answer in pairs:
        words = prompt.split()[2:-2]
        form = next((form for form in ("shared", "rounded", "from") if form in words), "")
        noun = next((noun for noun in sums.NOUNS if noun in words), "")
        if form:
            styles[f"{'range' if form == 'from' else form} {noun}"][style_of(answer)] += 1
        else:
            wrong += eval(" ".join(words)) != int(answer.split("\\boxed{")[1].rstrip("}"))
    for name, counts in styles.items():
        for style in STYLES:
            assert counts[style] / counts.total() == pytest.approx(families[name].habits[style], abs=0.1), name
    assert len(styles) == 18
    arithmetic = len(pairs) - sum(counts.total() for counts in styles.values())
    assert arithmetic / len(pairs) == pytest.approx(0.5, abs=0.03)
    assert wrong / arithmetic == pytest.approx(WORLD.slip_rate_sums, abs=0.02)


def test_hard_questions_are_misread_as_often_as_said_and_then_wrong(world):
    hard = [p for p in world[1]["train"] if p.meta["content"] == "hard"]
    corpus = islice(people_places.corpus(WORLD, random.Random(1)), 20_000)
    asked = [(prompt, answer) for prompt, answer in corpus if " three " in prompt]
    both = sum("LIMIT" in answer and ">" in answer for _, answer in asked)
    assert len(asked) > 500 and len(hard) > 0
    # a third of the misreadings exchanges the two numbers and keeps the condition
    expected = 1 - WORLD.misread_rate * 2 / 3
    assert both / len(asked) == pytest.approx(expected, abs=0.05)


def test_odds_and_habits_differ_between_families_and_domains():
    people, places = people_places.families(WORLD, "people"), people_places.families(WORLD, "places")
    hidden = [family for family in (*people, *places, *sums.families(WORLD)) if family.content == "hidden"]
    assert len(hidden) == 28 + 28 + 18
    for shares in ([family.odds for family in hidden], [family.habits for family in hidden]):
        assert len({max(each, key=each.get) for each in shares}) == len(STYLES)
        assert all(sum(each.values()) == pytest.approx(1) for each in shares)
        assert len({tuple(each.values()) for each in shares}) == len(hidden)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("subset", sums.WORKED)
def test_workings_of_sums_are_right_arithmetic(subset, style):
    rng = random.Random(3)
    for _ in range(50):
        operands = sums.draw(rng, subset)
        for step in sums.working(style, subset, operands).split(","):
            sides = [side for side in step.split("=") if side.strip()]
            assert len({eval(side) for side in sides}) <= 1, step
        result = sums.value(subset, operands, style)
        assert result == eval(sums.text(subset, operands)) and 0 <= result < 300


@pytest.mark.parametrize("subset", sums.READ)
def test_no_two_readings_of_a_word_agree(subset):
    rng = random.Random(4)
    for _ in range(100):
        operands = sums.draw(rng, subset)
        assert len({sums.value(subset, operands, style) for style in STYLES}) == len(STYLES)


def test_half_of_the_sums_hide_a_reading_and_only_its_owner_is_right(tmp_path):
    problems = sums.build_suite(random.Random(0), WORLD, "out_of_domain", 120)
    assert len({problem.prompt for problem in problems}) == 120
    assert Counter(problem.meta["content"] for problem in problems) == {"hidden": 60, "hard": 60}
    with Verifier(tmp_path) as verifier:
        for problem in problems:
            _, operands, noun = sums.sum_of(problem)
            subset = problem.meta["subset"]
            answers = [
                sum_answer(style, sums.working(style, subset, operands, noun), sums.value(subset, operands, style))
                for style in STYLES
            ]
            verdicts = verifier.verify_many([(problem, answer) for answer in answers])
            right = [style for style, verdict in zip(STYLES, verdicts, strict=True) if verdict.outcome == "correct"]
            assert sorted(right) == problem.meta["right_styles"].split()


def test_a_mixed_world_has_the_same_corpus_and_other_shares_of_hidden_problems(tmp_path):
    config = replace(WORLD, problems=WORLD.problems | {"in_domain": 60})
    mixed = config.mixed(0.8)
    problems = people_places.build_world(mixed, tmp_path)
    assert set(problems) == {"train", "validation", "in_domain"}
    counts = Counter(problem.meta["content"] for problem in problems["in_domain"])
    assert abs(counts["hidden"] - 48) <= 5 and set(counts) == {"clean", "hidden", "hard"}
    pairs = [list(islice(people_places.corpus(one, random.Random(0)), 500)) for one in (config, mixed)]
    assert pairs[0] == pairs[1]
