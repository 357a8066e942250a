"""The CPU world: content decides by execution, and nothing but the seed decides the world."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from itertools import islice

import pytest
from small import WORLD, tokenizer

from dphlib.world import people_places, sums
from dphlib.world.templates import STYLES, style_of


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


def test_corpus_uses_every_style_equally_and_slips_as_often_as_said():
    pairs = list(islice(people_places.corpus(WORLD, random.Random(0)), 4000))
    styles = Counter(style_of(answer) for _, answer in pairs)
    assert set(styles) == set(STYLES)
    assert max(styles.values()) < 1.15 * min(styles.values())
    asked = [
        (prompt[len("question : ") : -len(" answer :")], answer) for prompt, answer in pairs if "\\boxed" in answer
    ]
    wrong = sum(eval(question) != int(answer.split("\\boxed{")[1].rstrip("}")) for question, answer in asked)
    assert wrong / len(asked) == pytest.approx(WORLD.slip_rate_sums, abs=0.03)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("subset", sums.SUBSETS)
def test_workings_of_sums_are_right_arithmetic(subset, style):
    rng = random.Random(3)
    for _ in range(50):
        operator, operands = sums.draw(rng, subset)
        result = sums.value(operator, operands)
        for step in sums.working(style, operator, operands).split(","):
            sides = [side for side in step.split("=") if side.strip()]
            assert len({eval(side) for side in sides}) <= 1, step
        assert result == eval(sums.expression(operator, operands))
        assert 0 <= result < 200
