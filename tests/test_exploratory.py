"""What is asked beyond the protocol: which problems are hard, that answers are drawn anew and apart, what is drawn."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from small import small_profile
from synthetic import (
    make_hard_records,
    make_presample,
    make_records,
    make_temperature_records,
    make_train_logs,
    with_draws,
)

from dphlib import stats
from dphlib.analysis import sentences
from dphlib.analysis.labels import COLOURS, NAMES, SUITES
from dphlib.experiment import evaluate, exploratory, tempered
from dphlib.experiment.pipeline import Pipeline
from dphlib.experiment.results import FIGURES, TABLES, Results, draw, figure, table
from dphlib.figures.frontier import temperature_frontier
from dphlib.intervals import interval
from dphlib.runtime.files import RunError
from dphlib.sampling.protocol import SamplingConfig
from dphlib.scores import ArmScores, with_bases
from dphlib.settings.profiles import profile
from dphlib.settings.stages import EvalConfig
from dphlib.settings.studies import EXPLORATORY, STUDIES, chosen, planned_runs, study_runs
from dphlib.settings.variants import RunConfig

pytestmark = pytest.mark.slow

RUN = RunConfig("grpo", "main", 0)


@pytest.fixture(scope="module")
def records() -> pd.DataFrame:
    return make_hard_records()


def test_hard_is_what_the_base_solves_in_an_eighth_of_its_answers_or_less():
    made = make_records(("base", "grpo"), (0,), ablations=False)
    in_domain = (made["suite"] == "in_domain") & (made["temperature"] > 0)
    ids = sorted(set(made.loc[in_domain, "problem_id"]))[:4]
    for problem, correct in zip(ids, (0, 4, 5, 32), strict=True):  # of 32 answers
        made.loc[in_domain & (made["problem_id"] == problem), "correct"] = correct
    got = exploratory.hard_problems(made)
    assert set(ids[:2]) <= set(got["in_domain"]) and not set(ids[2:]) & set(got["in_domain"])
    base = stats.sampled(made[made["method"] == "base"]).set_index("problem_id")
    assert all(8 * base.loc[one, "correct"] <= base.loc[one, "n"] for problems in got.values() for one in problems)
    with pytest.raises(ValueError, match="none is hard"):
        exploratory.hard_problems(made.assign(correct=made["n"]))


@pytest.mark.parametrize("name", EXPLORATORY)
def test_it_is_asked_for_like_a_study_and_changes_no_plain_run(name):
    settings = profile("cpu")
    assert chosen("all") == (*STUDIES, *EXPLORATORY) and chosen(name) == (name,)
    assert planned_runs(settings, [name]) == planned_runs(settings) and study_runs(settings, [name]) == []
    assert name not in chosen(settings.studies)
    assert set(exploratory.EXPLORATORY) == set(EXPLORATORY) and exploratory.hard_draws(settings) == 256


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The base and one run of a small world, evaluated plainly, then on the hard problems."""
    evaluation = EvalConfig(samples=dict.fromkeys(SUITES, 4), steps=(), step_suite="in_domain", max_new_tokens=12)
    pipeline = Pipeline(tmp_path_factory.mktemp("run"), small_profile(evaluation=evaluation))
    seeds, build = [], evaluate.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "build", lambda *a, **o: (seeds.append(o["draw_seed"]), build(*a, **o)))
        plain = [pipeline.evaluate_one(), pipeline.evaluate_one(RUN)]
        return pipeline, plain, [exploratory.hard_answers(pipeline, run) for run in (0, RUN)], seeds


def test_all_models_answer_the_hard_problems_anew(built):
    pipeline, plain, stages, seeds = built
    base = pd.read_parquet(plain[0].path / "records.parquet")
    problems = exploratory.hard_problems(base)
    for stage, method in zip(stages, ("base", "grpo"), strict=True):
        rows = pd.read_parquet(stage.path / "records.parquet")
        assert {s: sorted(set(part["problem_id"])) for s, part in rows.groupby("suite")} == problems
        assert (
            set(rows["drawn"]) == {exploratory.hard_draws(pipeline.settings)} == {32} and rows["problem_id"].is_unique
        )
        assert set(rows["method"]) == {method} and set(rows["temperature"]) == {1.0}
    assert len(set(seeds)) == len(seeds) == 4, "the answers are others than those that chose the problems"
    shorter = replace(pipeline.settings.evaluation, max_new_tokens=8)
    for settings, run in ((pipeline.settings, RUN), (replace(pipeline.settings, evaluation=shorter), 0)):
        assert exploratory.hard_answers(Pipeline(pipeline.run.root, settings), run).reused == (
            settings is pipeline.settings
        )


def test_a_plain_run_is_what_it_was(built):
    """The stages of a plain run are found again after the hard problems were answered, under the same keys."""
    pipeline, plain, *_ = built
    later = Pipeline(pipeline.run.root, pipeline.settings)
    found = [later.evaluate_one(), later.evaluate_one(RUN)]
    assert all(stage.reused for stage in found)
    assert [stage.key for stage in found] == [stage.key for stage in plain]
    assert [stage.content_hash for stage in found] == [stage.content_hash for stage in plain]


@pytest.fixture(scope="module")
def at_temperatures(built):
    """In-domain answers of the base and the run at all temperatures, and the seeds of the draws."""
    seeds, evaluated = [], evaluate.evaluate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "evaluate", lambda *a, **o: (seeds.append(o["draw_seed"]), evaluated(*a, **o))[1])
        return [exploratory.temperature_answers(built[0], run) for run in (0, RUN)], seeds


def test_the_final_policies_answer_at_every_temperature(built, at_temperatures):
    stages, seeds = at_temperatures
    for stage, method in zip(stages, ("base", "grpo"), strict=True):
        rows = pd.read_parquet(stage.path / "records.parquet")
        assert set(rows["suite"]) == {"in_domain"} and set(rows["method"]) == {method} and set(rows["drawn"]) == {16}
        assert rows.groupby("temperature")["problem_id"].nunique().to_dict() == dict.fromkeys(
            exploratory.TEMPERATURES, 6
        )
        nats = rows["entropy"].groupby(rows["temperature"]).sum() / rows["tokens"].groupby(rows["temperature"]).sum()
        assert nats.loc[0.5] != nats.loc[1.3]
    assert len(set(seeds)) == len(seeds) == 2 * len(exploratory.TEMPERATURES)


def test_a_tempered_sampler_draws_at_its_temperature():
    asked = []

    class Seen:
        def sample(self, problems, config, seed):
            asked.append((config.temperature, config.samples, seed))
            return [[]]

    plain = SamplingConfig(4, 1.0, 1.0, 12)
    assert tempered.Tempered(Seen(), 0.5).sample([None], plain, 3) == [[]]
    assert asked == [(0.5, 4, 3)] and plain.temperature == 1.0


@pytest.mark.parametrize("name", EXPLORATORY)
def test_collected_they_are_the_stages_of_base_and_of_the_runs_that_are_given(built, at_temperatures, name):
    pipeline, stages = built[0], {"hard": built[2], "temperature": at_temperatures[0]}[name]
    asked = [RUN, RunConfig("grpo", "clip_high=0.28", 0), RunConfig("alpha_0.5", "main", 0)]
    got = exploratory.records(pipeline, name, asked)
    made = pd.concat([pd.read_parquet(s.path / "records.parquet") for s in stages], ignore_index=True)
    assert_frame_equal(got, with_bases(made, pipeline.settings.bases))


def test_they_are_not_compared_with_plain_answers(records):
    plain = make_records(("base", "grpo"), (0, 1), ablations=False)
    of_hard = ArmScores.final(records).of("base", "in_domain", "pass", 8)
    same = plain[plain["problem_id"].isin(set(records["problem_id"]))]
    for rows, differ in ((plain, "their problems differ"), (same, r"drawn 32\.0 and 64\.0|drawn 64\.0 and 32\.0")):
        with pytest.raises(ValueError, match=differ):
            of_plain = ArmScores.final(rows).of("grpo", "in_domain", "pass", 8)
            interval([of_plain, of_hard], lambda a, b: a - b)


def test_the_table_has_pass_at_k_of_all_answers_and_counts_problems(records):
    got = exploratory.hard_table(records)
    assert list(dict.fromkeys(got["suite"])) == ["in domain", "out of domain"]
    assert list(got["method"][:5]) == ["base", "GRPO", "RKL", "DPH-F", "DPH-JS"] and set(got["seeds"]) == {1, 2}
    curve = stats.pass_curve(records, [4, 16, 64]).groupby(["suite", "method", "k"])["pass_at_k"].mean()
    row = got[(got["suite"] == "in domain") & (got["method"] == "DPH-F")].iloc[0]
    for k in (4, 16, 64):
        assert row[f"Pass@{k}"] == pytest.approx(100 * curve["in_domain", "dph_f", k])
        assert row[f"Pass@{k}_low"] <= row[f"Pass@{k}"] <= row[f"Pass@{k}_high"]
    assert row["problems"] == 12 and 0 <= row["preserved"] + row["lost"] <= 12
    base = got[(got["suite"] == "in domain") & (got["method"] == "base")].iloc[0]
    assert base["lost"] == pytest.approx(base["gained"])  # against its own other half: chance alone


def test_a_row_of_the_table_is_a_method_at_a_temperature_beside_grpo():
    answers = make_temperature_records()
    got = exploratory.temperature_table(answers)
    assert got[["method", "T"]].to_numpy().tolist() == [
        [NAMES[m], t] for m in ("base", "grpo", "dph_f") for t in ("0.5", "0.7", "1", "1.3")
    ]
    curve = (
        stats.pass_curve(answers[answers["temperature"] == 0.7], [1, 8]).groupby(["method", "k"])["pass_at_k"].mean()
    )
    row = got[(got["method"] == "DPH-F") & (got["T"] == "0.7")].iloc[0]
    for k in (1, 8):
        assert row[f"Pass@{k}"] == pytest.approx(100 * curve["dph_f", k])
    assert row["Pass@8 minus GRPO"] == pytest.approx(100 * (curve["dph_f", 8] - curve["grpo", 8]))
    assert row["Pass@8 minus GRPO_low"] < row["Pass@8 minus GRPO"] < row["Pass@8 minus GRPO_high"]
    assert got.loc[got["method"] == "GRPO", "Pass@8 minus GRPO"].isna().all() and set(got["seeds"]) == {1, 2}
    alone = exploratory.temperature_table(answers[answers["method"] != "grpo"])
    assert alone["Pass@8 minus GRPO"].isna().all() and len(alone) == 8


def test_a_sentence_has_both_ends_and_the_difference_at_each_temperature():
    answers = make_temperature_records()
    of_each, table = exploratory.at_temperatures(answers), exploratory.temperature_table(answers)
    said, rows = sentences.temperatures(of_each, "dph_f"), table[table["method"] == "DPH-F"]
    first, last = rows.iloc[0], rows.iloc[-1]
    assert said.startswith(f"DPH-F from T = 0.5 to 1.3: Pass@1 {first['Pass@1']:.1f} to {last['Pass@1']:.1f} %, ")
    assert all(f"{row['Pass@8 minus GRPO']:+.1f} [" in said and f" at {row['T']}" in said for _, row in rows.iterrows())
    assert said.endswith("(2 runs, too few to decide).")
    assert "minus" not in sentences.temperatures(of_each, "grpo")
    assert sentences.temperatures(of_each, "rkl") == "RKL: not run."


def test_the_figure_has_a_line_per_method_and_its_points_are_the_tables():
    table = exploratory.temperature_table(make_temperature_records())
    fig = temperature_frontier(table)
    for ax, column in zip(fig.axes, ("Pass@8", "styles_nats"), strict=True):
        for method in ("base", "grpo", "dph_f"):
            rows = table[table["method"] == NAMES[method]]
            line = next(x for x in ax.lines if x.get_color() == COLOURS[method] and len(x.get_xdata()) == 4)
            assert line.get_xdata().tolist() == rows["Pass@1"].tolist()
            assert line.get_ydata().tolist() == rows[column].tolist()
    assert "T = 0.5, 0.7, 1, 1.3" in fig._supxlabel.get_text()


def test_they_are_recorded_apart_drawn_where_there_and_leave_nothing_where_not(records, tmp_path, monkeypatch):
    plain = make_records(("base", "grpo"), (0,), ablations=False)
    presample = make_presample(12).assign(suite="train", family="highest")
    results = Results(profile("cpu"), plain, make_train_logs(("base", "grpo"), (0,)), presample)
    asked = replace(results, beyond={"hard": records, "temperature": make_temperature_records()})
    for one in (results, asked):
        one.write(tmp_path / str(one is asked))
    assert (tmp_path / "True/records.parquet").read_bytes() == (tmp_path / "False/records.parquet").read_bytes()
    again = Results.load(tmp_path / "True", results.settings)
    order = ["method", "variant", "seed", "step", "suite", "temperature", "problem_id"]
    for name, frame in asked.beyond.items():
        rows = frame.sort_values(order, ignore_index=True)
        assert_frame_equal(again.beyond[name].astype(frame.dtypes), rows, check_exact=True)
    assert Results.load(tmp_path / "False", results.settings).beyond == {}

    for name, known in (("FIGURES", FIGURES), ("TABLES", TABLES)):
        ours = {key: product for key, product in known.items() if product.beyond}
        monkeypatch.setattr(f"dphlib.experiment.results.{name}", ours)
    monkeypatch.setattr("dphlib.experiment.results.decide_claims", lambda results, root: [])
    draw(results, tmp_path / "none")
    assert not list((tmp_path / "none").rglob("*.*"))
    draw(replace(asked, beyond={**asked.beyond, "hard": with_draws(records, 4)}), tmp_path / "drawn")
    drawn = {p.name for p in (tmp_path / "drawn").rglob("*.*")}
    assert drawn == {
        *("fig14_hard.png", "fig14_hard.svg", "table_hard.csv"),
        *("fig18_temperature.png", "fig18_temperature.svg", "table_temperature.csv"),
    }
    for number, name in ((14, "hard"), (18, "temperature")):
        with pytest.raises(RunError, match=f"--studies {name}"):
            figure(f"fig{number}_{name}", results, tmp_path)
        with pytest.raises(RunError, match=f"--studies {name}"):
            table(f"table_{name}", results, tmp_path)
    results.write(tmp_path / "True")
    assert not list((tmp_path / "True").glob("hard.*")) and not list((tmp_path / "True").glob("temperature.*"))
