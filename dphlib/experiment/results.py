"""The results of a run as files: what is recorded, and every figure, table and claim drawn from it.

`Results` holds the recorded tables. `FIGURES` and `TABLES` name each product once; a notebook shows one by its name,
`draw` writes them all, and the same numbers give the same bytes, with or without the stages they came from.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from dphlib import stats
from dphlib.analysis import claims, tables
from dphlib.analysis.contents import Part, by_content, content_table
from dphlib.analysis.labels import FAMILY
from dphlib.analysis.pretrained import pretrained_table
from dphlib.analysis.studies import study_table
from dphlib.analysis.waypoints import at_stopping, waypoint_table
from dphlib.experiment import answer_sample, exploratory
from dphlib.experiment import problems as problem_sets
from dphlib.experiment.cost import measure_cost
from dphlib.experiment.pipeline import Pipeline
from dphlib.figures import results as figures
from dphlib.figures.claims import claims_figure
from dphlib.figures.frontier import frontier, temperature_frontier
from dphlib.figures.method import method_figure
from dphlib.figures.studies import comparison_figure, complementarity_figure, pretrained_figure, weight_figure
from dphlib.figures.style import save as save_figure
from dphlib.figures.training import base_regime, cost_figure, divergence_curves, other_training_curves, training_curves
from dphlib.runtime.files import RunError, atomic_path, unknown, write_json, write_text
from dphlib.runtime.jobs import Job, run_jobs
from dphlib.runtime.places import REFERENCE, REFERENCE_METRICS
from dphlib.runtime.progress import announce
from dphlib.scores import ArmScores, with_bases
from dphlib.settings import studies
from dphlib.settings.environment import profile_from_environment
from dphlib.settings.gpu import GPU_PROFILES, SMOKE
from dphlib.settings.profiles import Profile
from dphlib.settings.studies import HARD, TEMPERATURE
from dphlib.settings.variants import RunConfig
from dphlib.types import VALIDATION

CLAIMS_FIGURE, CLAIMS_STOPPED = "fig10_claims", "claims_stopped.json"
"""The figure that `decide_claims` writes; the others are in `FIGURES`."""
TRAIN_LOGS, WAYPOINTS, ANSWERS = "train_log.parquet", "waypoints.parquet", "answers.parquet"

_PRETRAINED = REFERENCE / "lm" / "records.parquet"
_RUN = ["method", "variant", "seed"]
_SORTED_BY = [*_RUN, "step", "suite", "temperature", "problem_id"]
_TEXTS = ["method", "variant", "suite", "subset", "problem_id", "style", "verdict"]


@dataclass(frozen=True)
class Results:
    """The recorded tables of a run.

    Args:
        settings: the profile.
        records: `EvalRecord` rows with the column `base` (`scores.with_bases`).
        train_logs: iterations of all runs, with method, variant and seed.
        presample: one row per base and training prompt: base, suite, problem_id, family, correct of k; of each base in
            the draw of the first seed that uses it.
        cost: iterations of the cost measurement; None before it was made, and where training does not fit.
        waypoints: `analysis.waypoints.waypoint_table` of the runs and the bases, on the suite that way-points are
            measured on; None where there is none.
        beyond: `exploratory.records` of the studies beyond the protocol that were asked for, by name.
        answers: `answer_sample.answer_sample`; None where they were not kept.
        made: tables of studies that were asked for, by name.
    """

    settings: Profile
    records: pd.DataFrame
    train_logs: pd.DataFrame
    presample: pd.DataFrame
    cost: pd.DataFrame | None = None
    waypoints: pd.DataFrame | None = None
    beyond: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    answers: pd.DataFrame | None = None
    made: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False, compare=False)

    def study(self, names: Sequence[str]) -> pd.DataFrame:
        """The table of some studies (`analysis.studies.study_table`), each computed once."""
        if missing := [name for name in names if name not in self.made]:
            made = study_table(self.records, self.settings, missing)
            self.made.update({name: made[made["study"] == name].reset_index(drop=True) for name in missing})
        return pd.concat([self.made[name] for name in names], ignore_index=True)

    @cached_property
    def scores(self) -> ArmScores:
        """The scores of the final models."""
        return ArmScores.final(self.records)

    @cached_property
    def stopped_scores(self) -> ArmScores | None:
        """The scores at the runs' stopping points, None where runs have none."""
        if self.waypoints is None or not self.settings.evaluation.stops:
            return None
        return ArmScores(at_stopping(self.records, self.waypoints))

    @cached_property
    def hard_scores(self) -> ArmScores:
        """The scores on the hard problems; RunError where they were not answered."""
        return ArmScores.final(_beyond(self, HARD))

    @cached_property
    def by_content(self) -> dict[Part, pd.DataFrame]:
        """Final rows by what their problems hold; empty on other data."""
        return {} if self.settings.data is not None else by_content(self.records, self.settings.world)

    @cached_property
    def recorded(self) -> set[tuple[str, str]]:
        """Methods with variant that the records hold."""
        return set(map(tuple, self.records[["method", "variant"]].drop_duplicates().to_numpy().tolist()))

    @property
    def bases(self) -> list[int]:
        """Indices of the bases that were pre-sampled."""
        return sorted(self.presample["base"].unique().tolist())

    def of_base(self, index: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """One base's records and its rows of `presample`."""
        base = self.records[(self.records["method"] == "base") & (self.records["seed"] == index)]
        return base, self.presample[self.presample["base"] == index]

    def write(self, root: Path) -> None:
        """The recorded tables as files, which `load` reads.

        Rows are sorted, so the order in which runs ended does not show. What an earlier, larger set left is removed.
        """
        root = Path(root)
        _write_rows(self.records, root / "records.parquet", _SORTED_BY)
        _write_rows(self.train_logs, root / TRAIN_LOGS, [*_RUN, "iteration"])
        write_beyond(self.beyond, root)
        _write_rows(self.waypoints, root / WAYPOINTS, [*_RUN, "step"])
        _write_rows(self.answers, root / ANSWERS, ["suite"])
        for frame, path in ((self.presample, root / "presample.csv"), (self.cost, root / "cost.csv")):
            if frame is None:
                path.unlink(missing_ok=True)
            else:
                write_text(path, frame.to_csv(index=False, lineterminator="\n", na_rep="NaN"))

    @classmethod
    def load(cls, root: Path, settings: Profile) -> Results:
        """What `write` wrote, texts as categories.

        Raises:
            RunError: no recorded run there, or a part of it is missing.
        """
        root = Path(root)
        for part in ("records.parquet", TRAIN_LOGS, "presample.csv"):
            if not (root / part).exists():
                raise RunError(f"no recorded run in {root}: {part} is missing; run ./run_all.sh {settings.name} first")
        cost = _read_csv(root / "cost.csv") if (root / "cost.csv").is_file() else None
        waypoints, answers = (
            _read_rows(root / name) if (root / name).is_file() else None for name in (WAYPOINTS, ANSWERS)
        )
        records, logs = _read_rows(root / "records.parquet"), _read_rows(root / TRAIN_LOGS)
        if "base" not in records:  # recorded before 0.1.0 had the column
            records = with_bases(records, settings.bases)
        presample = _read_csv(root / "presample.csv")
        return cls(settings, records, logs, presample, cost, waypoints, read_beyond(root), answers)


def write_beyond(beyond: Mapping[str, pd.DataFrame], root: Path) -> None:
    """Writes the records of each study beyond the protocol to a file of its name; removes those of the others."""
    for name in studies.EXPLORATORY:
        _write_rows(beyond.get(name), root / f"{name}.parquet", _SORTED_BY)


def read_beyond(root: Path) -> dict[str, pd.DataFrame]:
    """What `write_beyond` wrote."""
    paths = {name: root / f"{name}.parquet" for name in studies.EXPLORATORY}
    return {name: _read_rows(path) for name, path in paths.items() if path.is_file()}


def _write_rows(frame: pd.DataFrame | None, path: Path, sorted_by: list[str]) -> None:
    """Sorted, texts as categories; without a frame the file is removed."""
    if frame is None:
        path.unlink(missing_ok=True)
        return
    rows = _coded(frame.sort_values(sorted_by, kind="stable", ignore_index=True))
    with atomic_path(path) as temporary:
        rows.to_parquet(temporary, index=False, compression="zstd", compression_level=19)


def _coded(frame: pd.DataFrame) -> pd.DataFrame:
    """Texts as categories."""
    return frame.astype(dict.fromkeys(frame.columns.intersection(_TEXTS), "category"))


def _read_rows(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except ValueError as error:  # as pyarrow's own for what is no such file
        raise RunError(f"{path} is damaged ({error}); restore it, or run again") from error


def _read_csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False, na_values=["NaN"])


@dataclass(frozen=True, slots=True)
class Product:
    """A figure or a table.

    Args:
        make: draws or computes it.
        studies: what it shows; made where an arm that only these studies train is in the records.
        beyond: the study beyond the protocol that it shows; made where `Results.beyond` has it.
        styles: it shows styles of answers; made where they are known.
        waypoints: it shows runs on their way; made where they were measured there.
        stopped: it shows runs at their stopping points; made where they have some.
        cost: it shows the cost of an iteration; made where `Results.cost` is there.
        contents: it shows what problems hold; made where they are of the world's families.
        pretrained: it shows the profile `cpu` beside the recorded run of `lm`; made where that is there.
    """

    make: Callable[[Results], Any]
    studies: tuple[str, ...] = ()
    beyond: str = ""
    styles: bool = False
    waypoints: bool = False
    stopped: bool = False
    cost: bool = False
    contents: bool = False
    pretrained: bool = False

    def why_absent(self, results: Results) -> str:
        """Why these results do not have it, "" where they do."""
        if self.studies and not recorded_studies(results, self.studies):
            return "its studies were not run"
        if self.beyond and self.beyond not in results.beyond:
            return exploratory.EXPLORATORY[self.beyond].absent
        if self.styles and not stats.has_styles(results.records):
            return "no styles were told"
        if self.waypoints and results.waypoints is None:
            return "no way-points were measured"
        if self.stopped and results.stopped_scores is None:
            return "no run has a stopping point"
        if self.cost and results.cost is None:
            return "the cost of an iteration was not measured"
        if self.contents and not results.by_content:
            return "no problem is of a family of the world"
        if self.pretrained and results.settings.name != "cpu":
            return "it is the profile cpu's, beside a pretrained model's"
        if self.pretrained and not _PRETRAINED.is_file():
            return "no run of a pretrained model is recorded"
        return ""

    @property
    def usual(self) -> bool:
        """Whether every run has it."""
        return not (self.studies or self.beyond or self.pretrained)


CONTROL_STUDIES = ("controls", "strength")
ARM_STUDIES = ("direction", "factorial", "rivals")
ABLATION_STUDIES = tuple(name for name in studies.STUDIES if name not in (*CONTROL_STUDIES, *ARM_STUDIES))
_SETTING_STUDIES = tuple(name for name in ABLATION_STUDIES if name not in ("eta", "complementarity"))
_HARD_METHODS = exploratory.EXPLORATORY[HARD].methods

FIGURES: dict[str, Product] = {
    "fig1_method": Product(
        lambda r: method_figure(r.records, k=r.settings.presample.k, threshold=r.settings.presample.threshold)
    ),
    "fig2_pass_at_k": Product(lambda r: figures.pass_curves(r.records)),
    "fig2_pass_at_k_family": Product(lambda r: figures.pass_curves(r.records, FAMILY)),
    "fig3_keep_explore": Product(lambda r: figures.keep_explore(r.records)),
    "fig4_styles": Product(lambda r: figures.styles(r.records), styles=True),
    "fig5_training": Product(lambda r: training_curves(r.train_logs)),
    "fig5_training_others": Product(lambda r: other_training_curves(r.train_logs)),
    "fig6_cost": Product(lambda r: cost_figure(_cost(r)), cost=True),
    "fig7_divergences": Product(lambda r: _divergences()),
    "fig8_frontier": Product(lambda r: frontier(r.waypoints), waypoints=True),
    "fig9_base": Product(lambda r: _base_regime(r)),
    "fig11_controls": Product(lambda r: comparison_figure(r.study(CONTROL_STUDIES)), CONTROL_STUDIES),
    "fig12_eta": Product(lambda r: weight_figure(r.study(("eta",)), r.settings), ("eta",)),
    "fig13_ablations": Product(lambda r: comparison_figure(r.study(_SETTING_STUDIES)), _SETTING_STUDIES),
    "fig14_hard": Product(lambda r: figures.pass_curves(_beyond(r, HARD), ("base", *_HARD_METHODS)), beyond=HARD),
    "fig17_arms": Product(lambda r: comparison_figure(r.study(ARM_STUDIES)), ARM_STUDIES),
    "fig18_temperature": Product(
        lambda r: temperature_frontier(exploratory.temperature_table(_beyond(r, TEMPERATURE))), beyond=TEMPERATURE
    ),
    "fig19_complementarity": Product(
        lambda r: complementarity_figure(r.study(("complementarity",)), r.settings), ("complementarity",)
    ),
    "fig20_contents": Product(lambda r: figures.content_curves(r.by_content), contents=True),
    "fig21_pretrained": Product(lambda r: pretrained_figure(_beside_pretrained(r)), pretrained=True),
}
"""All but `CLAIMS_FIGURE`."""

TABLES: dict[str, Product] = {
    "table1": Product(lambda r: tables.table1(r.scores)),
    "table2": Product(lambda r: tables.table2(r.scores)),
    "table_points": Product(lambda r: tables.table_points(r.scores, _stopped(r)), stopped=True),
    "table3": Product(lambda r: tables.table3(r.scores)),
    "table4": Product(
        lambda r: tables.table4(
            r.scores, r.settings.presample.k, r.settings.presample.threshold, r.settings.presample.k
        )
    ),
    "table5": Product(lambda r: tables.table5(r.scores, r.settings.weight("dph_js"))),
    "methods": Product(lambda r: tables.methods_table(r.settings)),
    "table_controls": Product(lambda r: r.study(CONTROL_STUDIES), CONTROL_STUDIES),
    "table_ablations": Product(lambda r: r.study(ABLATION_STUDIES), ABLATION_STUDIES),
    "table_arms": Product(lambda r: r.study(ARM_STUDIES), ARM_STUDIES),
    "table_hard": Product(lambda r: exploratory.hard_table(_beyond(r, HARD)), beyond=HARD),
    "table_temperature": Product(lambda r: exploratory.temperature_table(_beyond(r, TEMPERATURE)), beyond=TEMPERATURE),
    "table_contents": Product(lambda r: content_table(r.by_content), contents=True),
    "table_pretrained": Product(lambda r: _beside_pretrained(r), pretrained=True),
}

NO_STYLES = (
    "The answers to these data sets have no styles that could be told apart: none were taught, and an answer's first "
    "words do not name one. What shows styles is left out."
)
"""What is said where there are no styles."""
NO_COST = (
    "The cost of an iteration was not measured, or not recorded in cost.csv. Figure 6 and the table of the cost are "
    "left out."
)
"""What is said where there is no cost."""


def _divergences() -> Figure:
    from dphlib.lessons import categorical  # here, for it brings torch, which nothing else here needs

    return divergence_curves(categorical.curves(categorical.DRAWN))


def _base_regime(results: Results) -> Figure:
    records, presample = results.of_base(results.settings.base_index(results.settings.seeds[0]))
    sql, config = presample[presample["suite"] == "train"], results.settings.presample
    return base_regime(records, sql, k=config.k, threshold=config.threshold)


def _beyond(results: Results, name: str) -> pd.DataFrame:
    if name not in results.beyond:
        raise RunError(f"{exploratory.EXPLORATORY[name].absent}: ask for them with --studies {name}")
    return results.beyond[name]


def _beside_pretrained(results: Results) -> pd.DataFrame:
    return pretrained_table(results.scores, ArmScores.final(_read_rows(_PRETRAINED)))


def _stopped(results: Results) -> ArmScores:
    if results.stopped_scores is None:
        raise RunError("no run has a stopping point: this profile's way-points are not on a validation suite")
    return results.stopped_scores


def _cost(results: Results) -> pd.DataFrame:
    if results.cost is None:
        raise RunError("the cost of an iteration was not measured yet: run notebook 07 first")
    return results.cost


def left_out(results: Results) -> dict[str, str]:
    """Figures and tables that these results do not have, each with why."""
    reasons = {name: product.why_absent(results) for name, product in (FIGURES | TABLES).items()}
    return {name: why for name, why in reasons.items() if why}


def recorded_studies(results: Results, names: Sequence[str] = tuple(studies.STUDIES)) -> list[str]:
    """The studies of which the records hold an arm that no other run has; if a study has one of its own, such a one."""
    beyond = {name: studies.arms_beyond(results.settings, [name]) for name in studies.STUDIES}
    shared = Counter(arm for arms in beyond.values() for arm in arms)
    telling = {name: {arm for arm in arms if shared[arm] == 1} or set(arms) for name, arms in beyond.items()}
    return [name for name in names if results.recorded & telling[name]]


def figure(name: str, results: Results, root: Path) -> Figure:
    """Draws one figure by its name, writes it to `figures/` as PNG and SVG, and returns it.

    Raises:
        ValueError: no such figure, or the results lack what it shows.
    """
    drawn = _product(FIGURES, name, "figure").make(results)
    save_figure(drawn, Path(root) / "figures", name)
    return drawn


def table(name: str, results: Results, root: Path) -> pd.DataFrame:
    """Makes one table by its name, writes it to `tables/` as CSV, and returns it.

    Raises:
        ValueError: no such table.
    """
    made = _product(TABLES, name, "table").make(results)
    tables.to_csv(made, Path(root) / "tables" / f"{name}.csv")
    return made


def _product(products: Mapping[str, Product], name: str, kind: str) -> Product:
    if name not in products:
        raise unknown(kind, name, products)
    return products[name]


def decide_claims(results: Results, root: Path) -> list[claims.ClaimResult]:
    """Every claim's verdict at the end of training; writes `claims.json` and the figure of all verdicts.

    Where runs have a stopping point, the verdicts there go to `claims_stopped.json`.
    """
    decided = claims.evaluate_claims(results.scores, results.train_logs, results.settings.name)
    write_text(Path(root) / "claims.json", claims.to_json(decided))
    save_figure(claims_figure(decided), Path(root) / "figures", CLAIMS_FIGURE)
    if results.stopped_scores is not None:
        of_stopped = claims.evaluate_claims(results.stopped_scores, results.train_logs, results.settings.name)
        write_text(Path(root) / CLAIMS_STOPPED, claims.to_json(of_stopped))
    else:
        (Path(root) / CLAIMS_STOPPED).unlink(missing_ok=True)
    return decided


def products(results: Results) -> list[str]:
    """Names of the figures and tables that these results have."""
    absent = left_out(results)
    return [name for name in (*FIGURES, *TABLES) if name not in absent]


def not_drawn(absent: Iterable[str]) -> str:
    """What these results lack (`left_out`) in a sentence, "" for nothing.

    >>> not_drawn(["fig12_eta", "fig14_hard"])
    'not run, so not drawn: fig12_eta, fig14_hard'
    """
    named = ", ".join(absent)
    return f"not run, so not drawn: {named}" if named else ""


def draw(
    results: Results, root: Path, names: Sequence[str] | None = None, with_claims: bool = True
) -> list[claims.ClaimResult]:
    """Every figure, table and claim into `root`; what an earlier, larger run drew there beyond these is removed.

    Args:
        names: of `products`; None for all.
        with_claims: whether the claims are decided too; without, none is returned.

    Raises:
        ValueError: a name that is neither a figure's nor a table's, before anything is drawn.
    """
    names = products(results) if names is None else names
    for name in names:
        _product(FIGURES | TABLES, name, "figure or table")
    for name in left_out(results):
        for path in (f"figures/{name}.png", f"figures/{name}.svg", f"tables/{name}.csv"):
            (Path(root) / path).unlink(missing_ok=True)
    for name in names:
        if name in FIGURES:
            plt.close(figure(name, results, root))
        else:
            table(name, results, root)
    return decide_claims(results, root) if with_claims else []


def draw_recorded(source: Path, root: Path, asked: tuple[str, str, str]) -> list[claims.ClaimResult]:
    """`draw` from a folder of recorded results into `root`, by two processes; a terminal is told what is not there.

    Args:
        asked: what `settings.profiles.profile` takes: name, seeds, study_seeds.
    """
    where = {"source": str(source), "root": str(root), "asked": asked}
    jobs = [Job(part, draw_part, {**where, "part": part}) for part in PARTS]
    absent = run_jobs(jobs, workers=None, label="drawing")[0]
    if absent:
        announce(not_drawn(absent))
    return claims.from_json((root / "claims.json").read_text(encoding="utf-8"))


PARTS = ("studies and claims", "the rest")
"""They take about as long."""


def draw_part(source: str, root: str, asked: Sequence[str], part: str) -> list[str]:
    """One of `PARTS`, as a job; returns the names of what the results lack."""
    results = Results.load(Path(source), profile_from_environment(*asked))
    with_claims, known = part == PARTS[0], FIGURES | TABLES
    names = [name for name in products(results) if known[name].usual != with_claims]
    draw(results, Path(root), names, with_claims)
    return list(left_out(results))


def collect(
    pipeline: Pipeline,
    runs: Sequence[RunConfig],
    with_cost: bool = False,
    studied: Sequence[str] = (),
    with_answers: bool = False,
) -> Results:
    """The recorded tables of the base and of `runs`, building what is not there yet.

    On a GPU on which training does not fit, `runs` may be there all the same (trained elsewhere, by verl): then there
    is no cost, and why is printed.

    Args:
        with_cost: measure the cost of an iteration too.
        studied: names of studies; those of `studies.EXPLORATORY` draw answers of their own from `runs`.
        with_answers: keep a small model's answers to a few problems too; a large one's would take hours.
    """
    records, settings = pipeline.evaluate(runs), pipeline.settings
    suites = [suite for suite in ("train", "sums_train") if suite in problem_sets.suites(settings)]
    drawn = [(suite, index, seed) for index, seed in settings.used_bases.items() for suite in suites]
    pipeline.presample_all([(suite, settings.presample, seed) for suite, _, seed in drawn])
    rows = [
        {"base": index, "suite": suite, "problem_id": g.problem.id}
        | {"family": g.problem.meta.get("family", ""), "correct": g.correct}
        for suite, index, seed in drawn
        for g in pipeline.groups(suite, seed=seed)
    ]
    cost = _measured_cost(pipeline) if with_cost else None
    beyond = {name: exploratory.records(pipeline, name, runs) for name in studies.EXPLORATORY if name in studied}
    on_the_way, records = _parted(records, settings.evaluation.step_suite)
    logs = pipeline.train_logs(runs)
    answers = answer_sample.answer_sample(pipeline, runs) if with_answers and settings.small else None
    return Results(settings, _coded(records), logs, pd.DataFrame(rows), cost, on_the_way, beyond, answers)


def _parted(records: pd.DataFrame, step_suite: str) -> tuple[pd.DataFrame | None, pd.DataFrame]:
    """The table of the way-points, and the records without those of the validation suite."""
    of_suite = records[records["suite"] == step_suite]
    table = waypoint_table(of_suite) if of_suite["step"].nunique() > 1 else None
    return table, records[records["suite"] != VALIDATION]


def _measured_cost(pipeline: Pipeline) -> pd.DataFrame | None:
    try:
        pipeline.require_memory({"training": measure_cost})
    except RunError as error:
        print(f"the cost of an iteration is not measured: {error}")
        return None
    return measure_cost(pipeline)


def close_notebook(name: str, root: Path, metrics: Mapping[str, Any]) -> None:
    """Writes a notebook's numbers to `metrics/<name>.json`, which tests and readers use; prints where in the folder."""
    path = root / "metrics" / f"{name}.json"
    write_json(path, dict(metrics))
    print(f"{name}: {len(metrics)} numbers in {path.relative_to(root)}")


def beside_reference(
    name: str, root: Path, metrics: Mapping[str, Any], recorded: Path = REFERENCE_METRICS
) -> pd.DataFrame:
    """A notebook's numbers beside those of the committed reference run: what a reader should see.

    Args:
        name: the notebook, such as `01_divergences`.
        root: run folder; its name, the profile's, heads the column of the numbers made here.
        metrics: what `close_notebook` is given.
        recorded: folder with `<name>.json` of the reference run.

    Returns:
        One row per number. Without a reference run, or for a number that it lacks, the second column says so; the
        numbers of a GPU profile, of another model on other data, are not compared with it. On the reference's own
        profile `agrees` says whether the two are equal as they are printed, or by how much they differ.
    """
    here = {"number": list(metrics), f"here ({root.name})": [_short(value) for value in metrics.values()]}
    if root.name.removesuffix(SMOKE) in GPU_PROFILES:
        return pd.DataFrame(here)
    path = recorded / f"{name}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    there = {key: known.get(key, "not recorded") for key in metrics}
    frame = pd.DataFrame({**here, "reference run": [_short(value) for value in there.values()]})
    if root.name != _OF_REFERENCE:
        return frame
    return frame.assign(agrees=[_agrees(metrics[key], there[key]) if key in known else "-" for key in metrics])


_OF_REFERENCE = "cpu"
"""The profile whose run the reference is."""


def _agrees(here: Any, there: Any) -> str:
    if _short(here) == _short(there):
        return "yes"
    if isinstance(here, str) or isinstance(there, str) or not there:
        return "no"
    return f"no, by {100 * abs(here / there - 1):.2g} %"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
