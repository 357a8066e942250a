"""The results of a run as files: what is recorded, and every figure, table and claim drawn from it.

`Results` holds the recorded tables. `FIGURES` and `TABLES` name each product once; a notebook shows one by its name,
`draw` writes them all, and the same numbers give the same bytes, with or without the stages they came from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from dphlib import stats
from dphlib.analysis import claims, tables
from dphlib.analysis import studies as ablations
from dphlib.experiment import hard
from dphlib.experiment import problems as problem_sets
from dphlib.experiment.cost import measure_cost
from dphlib.experiment.pipeline import Pipeline
from dphlib.experiment.store import RunError, atomic_path
from dphlib.figures import results as plots
from dphlib.figures import studies as study_plots
from dphlib.figures import training as run_plots
from dphlib.figures.claims import claims_figure
from dphlib.figures.method import method_figure
from dphlib.figures.style import save as save_figure
from dphlib.runtime.files import write_json, write_text
from dphlib.runtime.jobs import Job, run_jobs
from dphlib.runtime.places import REFERENCE_METRICS
from dphlib.settings import studies
from dphlib.settings.environment import profile_from_environment
from dphlib.settings.gpu import GPU_PROFILES, SMOKE
from dphlib.settings.profiles import Profile
from dphlib.settings.variants import RunConfig

CLAIMS_FIGURE = "fig10_claims"
"""The figure that `judge` writes; the others are in `FIGURES`."""
HARD_RECORDS = "hard.parquet"
TRAIN_LOGS = "train_log.parquet"

_RUN = ["method", "variant", "seed"]
# Equal answers to a problem are neighbours: it takes a sixth less space than the order in which they were drawn.
_SORTED_BY = [*_RUN, "step", "suite", "problem_id", "answer_hash", "sample"]
_TEXTS = ["method", "variant", "suite", "subset", "problem_id", "outcome", "style", "answer_hash"]


@dataclass(frozen=True)
class Results:
    """The recorded tables of a run.

    Args:
        settings: the profile.
        records: `EvalRecord` rows.
        train_logs: iterations of all runs, with method, variant and seed.
        presample: a row a training prompt: suite, problem_id, family, correct of k.
        cost: iterations of the cost measurement; None before it was made.
        hard: `EvalRecord` rows of the hard problems (`hard.hard_records`); None where they were not asked for.
        made: tables of studies that were asked for, by name.
    """

    settings: Profile
    records: pd.DataFrame
    train_logs: pd.DataFrame
    presample: pd.DataFrame
    cost: pd.DataFrame | None = None
    hard: pd.DataFrame | None = None
    made: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False, compare=False)

    def study(self, names: Sequence[str]) -> pd.DataFrame:
        """The table of some studies (`ablations.study_table`), each computed once."""
        if missing := [name for name in names if name not in self.made]:
            made = ablations.study_table(self.records, self.settings, missing)
            self.made.update({name: made[made["study"] == name].reset_index(drop=True) for name in missing})
        return pd.concat([self.made[name] for name in names], ignore_index=True)

    @cached_property
    def arms(self) -> tables.Arms:
        """The records as the tables of the paper read them."""
        return tables.Arms(self.records)

    @cached_property
    def recorded(self) -> set[tuple[str, str]]:
        """Methods with variant that the records hold."""
        return set(map(tuple, self.records[["method", "variant"]].drop_duplicates().to_numpy().tolist()))

    @property
    def sql_presample(self) -> pd.DataFrame:
        return self.presample[self.presample["suite"] == "train"]

    def write(self, root: Path) -> None:
        """`records.parquet`, `train_log.parquet`, `hard.parquet`, `presample.csv`, `cost.csv`: `load` reads the same.

        Rows are sorted, so the order in which runs ended does not show. What an earlier, larger set left is removed.
        """
        root = Path(root)
        _write_rows(self.records, root / "records.parquet", _SORTED_BY)
        _write_rows(self.train_logs, root / TRAIN_LOGS, [*_RUN, "iteration"])
        if self.hard is not None:
            _write_rows(self.hard, root / HARD_RECORDS, _SORTED_BY)
        else:
            (root / HARD_RECORDS).unlink(missing_ok=True)
        write_text(root / "presample.csv", self.presample.to_csv(index=False, lineterminator="\n", na_rep="NaN"))
        if self.cost is not None:
            write_text(root / "cost.csv", self.cost.to_csv(index=False, lineterminator="\n", na_rep="NaN"))
        else:
            (root / "cost.csv").unlink(missing_ok=True)

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
        hard_rows = pd.read_parquet(root / HARD_RECORDS) if (root / HARD_RECORDS).is_file() else None
        cost = _read_csv(root / "cost.csv") if (root / "cost.csv").is_file() else None
        records, logs = pd.read_parquet(root / "records.parquet"), pd.read_parquet(root / TRAIN_LOGS)
        return cls(settings, records, logs, _read_csv(root / "presample.csv"), cost, hard_rows)


def _write_rows(frame: pd.DataFrame, path: Path, sorted_by: list[str]) -> None:
    rows = _coded(frame.sort_values(sorted_by, kind="stable", ignore_index=True))
    with atomic_path(path) as temporary:
        rows.to_parquet(temporary, index=False, compression="zstd", compression_level=19)


def _coded(frame: pd.DataFrame) -> pd.DataFrame:
    """Texts as categories."""
    return frame.astype(dict.fromkeys(frame.columns.intersection(_TEXTS), "category"))


def _read_csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False, na_values=["NaN"])


FIGURES: dict[str, Callable[[Results], Figure]] = {
    "fig1_method": lambda r: method_figure(
        r.records, k=r.settings.presample.k, threshold=r.settings.presample.threshold
    ),
    "fig2_pass_at_k": lambda r: plots.pass_curves(r.records),
    "fig2_pass_at_k_family": lambda r: plots.pass_curves(r.records, plots.FAMILY),
    "fig3_keep_explore": lambda r: plots.keep_explore(r.records),
    "fig4_styles": lambda r: plots.styles(r.records),
    "fig5_training": lambda r: run_plots.training_curves(r.train_logs[r.train_logs["variant"] == "main"]),
    "fig6_cost": lambda r: run_plots.cost_figure(_cost(r)),
    "fig7_divergences": lambda r: _divergences(),
    "fig8_pass_over_steps": lambda r: plots.pass_over_steps(r.records),
    "fig9_base": lambda r: run_plots.base_regime(
        r.records, r.sql_presample, k=r.settings.presample.k, threshold=r.settings.presample.threshold
    ),
}

TABLES: dict[str, Callable[[Results], pd.DataFrame]] = {
    "table1": lambda r: tables.table1(r.arms),
    "table2": lambda r: tables.table2(r.arms),
    "table3": lambda r: tables.table3(r.arms),
    "table4": lambda r: tables.table4(
        r.arms, r.settings.presample.k, r.settings.presample.threshold, r.settings.presample.k
    ),
    "table5": lambda r: tables.table5(r.arms, r.settings.weight("dph_js")),
    "methods": lambda r: tables.methods_table(r.settings),
}


def _divergences() -> Figure:
    from dphlib.lessons import categorical as lessons  # here, for it brings torch, which nothing else here needs

    return plots.divergence_curves(lessons.curves(lessons.DRAWN))


CONTROL_STUDIES = ("controls", "strength")
ABLATION_STUDIES = tuple(name for name in studies.STUDIES if name not in CONTROL_STUDIES)

STUDY_FIGURES: dict[str, tuple[tuple[str, ...], Callable[[Results, pd.DataFrame], Figure]]] = {
    "fig11_controls": (CONTROL_STUDIES, lambda r, table: study_plots.comparison_figure(table)),
    "fig12_eta": (("eta",), lambda r, table: study_plots.weight_figure(table, r.settings)),
    "fig13_ablations": (
        tuple(name for name in ABLATION_STUDIES if name != "eta"),
        lambda r, table: study_plots.comparison_figure(table),
    ),
}
"""Figures of studies, and which; `draw` makes one where an arm that only these studies train is in the records."""
STUDY_TABLES = {"table_controls": CONTROL_STUDIES, "table_ablations": ABLATION_STUDIES}

HARD_FIGURES: dict[str, Callable[[Results], Figure]] = {
    "fig14_hard": lambda r: plots.pass_curves(_hard(r), ("base", *hard.HARD_METHODS)),
}
HARD_TABLES: dict[str, Callable[[Results], pd.DataFrame]] = {"table_hard": lambda r: hard.hard_table(_hard(r))}
"""Of the hard problems; made where `Results.hard` is there."""


STYLED = ("fig4_styles",)
NO_STYLES = (
    "The answers to these data sets have no styles that could be told apart: none were taught, and an answer's first "
    "words do not name one. What shows styles is left out."
)
"""Figures that show styles, and what is said where there are none."""


def left_out(results: Results) -> dict[str, str]:
    """Figures and tables that these results do not have, each with why."""
    of_studies = {**{name: wanted for name, (wanted, _) in STUDY_FIGURES.items()}, **STUDY_TABLES}
    absent = {
        n: "its studies were not run" for n, wanted in of_studies.items() if not recorded_studies(results, wanted)
    }
    if results.hard is None:
        absent |= dict.fromkeys((*HARD_FIGURES, *HARD_TABLES), "the hard problems were not answered")
    if not stats.has_styles(results.records):
        absent |= dict.fromkeys(STYLED, "no styles were told")
    return absent


def _hard(results: Results) -> pd.DataFrame:
    if results.hard is None:
        raise RunError("the hard problems were not answered: ask for them with --studies hard")
    return results.hard


def recorded_studies(results: Results, names: Sequence[str] = tuple(studies.STUDIES)) -> list[str]:
    """The studies of which the records hold an arm that no other run has."""
    return [name for name in names if results.recorded & set(studies.arms_beyond(results.settings, [name]))]


def _cost(results: Results) -> pd.DataFrame:
    if results.cost is None:
        raise RunError("the cost of an iteration was not measured yet: run notebook 07 first")
    return results.cost


def figure(name: str, results: Results, root: Path) -> Figure:
    """Draws one figure by its name, writes it to `figures/` as PNG and SVG, and returns it.

    Raises:
        ValueError: no such figure, or the results lack what it shows.
    """
    if name in STUDY_FIGURES:
        names, draw_study = STUDY_FIGURES[name]
        drawn = draw_study(results, results.study(names))
    else:
        drawn = _product(FIGURES | HARD_FIGURES, name, "figure")(results)
    save_figure(drawn, Path(root) / "figures", name)
    return drawn


def table(name: str, results: Results, root: Path) -> pd.DataFrame:
    """Makes one table by its name, writes it to `tables/` as CSV, and returns it.

    Raises:
        ValueError: no such table.
    """
    if name in STUDY_TABLES:
        made = results.study(STUDY_TABLES[name])
    else:
        made = _product(TABLES | HARD_TABLES, name, "table")(results)
    tables.to_csv(made, Path(root) / "tables" / f"{name}.csv")
    return made


def _product(products: Mapping[str, Callable[[Results], Any]], name: str, kind: str) -> Callable[[Results], Any]:
    if name not in products:
        raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(products)}")
    return products[name]


def judge(results: Results, root: Path) -> list[claims.ClaimResult]:
    """Judges every claim; writes `claims.json` and the figure of all verdicts."""
    judged = claims.evaluate_claims(results.records, results.train_logs, results.settings.name)
    write_text(Path(root) / "claims.json", claims.to_json(judged))
    save_figure(claims_figure(judged), Path(root) / "figures", CLAIMS_FIGURE)
    return judged


def products(results: Results) -> list[str]:
    """Names of the figures and tables that these results have; those that they have not are told (`left_out`)."""
    if absent := left_out(results):
        print(f"not run, so not drawn: {', '.join(absent)}")
    every = (*FIGURES, *TABLES, *STUDY_FIGURES, *STUDY_TABLES, *HARD_FIGURES, *HARD_TABLES)
    return [name for name in every if name not in absent]


def draw(
    results: Results, root: Path, names: Sequence[str] | None = None, judged: bool = True
) -> list[claims.ClaimResult]:
    """Every figure, table and claim into `root`; what an earlier, larger run drew there beyond these is removed.

    Args:
        names: of `products`; None for all.
        judged: whether the claims are judged too; without, none is returned.

    Raises:
        ValueError: a name that is neither a figure's nor a table's, before anything is drawn.
    """
    names = products(results) if names is None else names
    figures = {**FIGURES, **STUDY_FIGURES, **HARD_FIGURES}
    known: dict[str, Any] = {**figures, **TABLES, **STUDY_TABLES, **HARD_TABLES}
    for name in names:
        _product(known, name, "figure or table")
    for name in left_out(results):
        for path in (f"figures/{name}.png", f"figures/{name}.svg", f"tables/{name}.csv"):
            (Path(root) / path).unlink(missing_ok=True)
    # Filters and groups of texts take three times as long as those of codes.
    hard_rows = None if results.hard is None else _coded(results.hard)
    results = replace(results, records=_coded(results.records), hard=hard_rows)
    for name in names:
        if name in figures:
            plt.close(figure(name, results, root))
        else:
            table(name, results, root)
    return judge(results, root) if judged else []


def draw_recorded(source: Path, root: Path, asked: tuple[str, str, str]) -> list[claims.ClaimResult]:
    """`draw` from a folder of recorded results into `root`, by two processes.

    Args:
        asked: what `config.profile` takes: name, seeds, study_seeds.
    """
    where = {"source": str(source), "root": str(root), "asked": asked}
    run_jobs(
        [Job(p, "dphlib.experiment.results:draw_part", {**where, "part": p}) for p in PARTS],
        workers=None,
        label="drawing",
    )
    return claims.from_json((root / "claims.json").read_text(encoding="utf-8"))


PARTS = ("studies and claims", "the rest")
"""They take about as long."""


def draw_part(source: str, root: str, asked: Sequence[str], part: str) -> None:
    """One of `PARTS`, as a job."""
    results = Results.load(Path(source), profile_from_environment(*asked))
    rest, others = (*FIGURES, *TABLES), part == PARTS[0]
    draw(results, Path(root), [name for name in products(results) if (name not in rest) == others], judged=others)


def collect(pipeline: Pipeline, runs: Sequence[RunConfig], with_cost: bool = False, with_hard: bool = False) -> Results:
    """The recorded tables of the base and of `runs`, building what is not there yet; at wish the cost measured and the
    hard problems answered.
    """
    records = pipeline.evaluate(runs)
    rows = [
        {"suite": suite, "problem_id": g.problem.id, "family": g.problem.meta.get("family", ""), "correct": g.correct}
        for suite in ("train", "sums_train")
        if suite in problem_sets.suites(pipeline.settings)
        for g in pipeline.groups(suite)
    ]
    cost = measure_cost(pipeline) if with_cost else None
    answered = hard.hard_records(pipeline) if with_hard else None
    return Results(pipeline.settings, _coded(records), pipeline.train_logs(runs), pd.DataFrame(rows), cost, answered)


def close_notebook(name: str, root: Path, metrics: Mapping[str, Any]) -> None:
    """Writes a notebook's numbers to `metrics/<name>.json`, which tests and readers use; prints where."""
    path = root / "metrics" / f"{name}.json"
    write_json(path, dict(metrics))
    print(f"{name}: {len(metrics)} numbers in {path}")


def beside_reference(
    name: str, root: Path, metrics: Mapping[str, Any], recorded: Path = REFERENCE_METRICS
) -> pd.DataFrame:
    """A notebook's numbers beside those of the committed reference run: what a reader should see.

    Args:
        name: the notebook, such as `01_divergences`.
        root: run folder; its name, the profile's, heads the column of the numbers made here.
        metrics: what is handed to `close_notebook`.
        recorded: folder with `<name>.json` of the reference run.

    Returns:
        One row a number. Without a reference run, or for a number that it lacks, the second column says so; the
        numbers of a GPU profile, of another model on other data, are not set beside it.
    """
    here = {"number": list(metrics), f"here ({root.name})": [_short(value) for value in metrics.values()]}
    if root.name.removesuffix(SMOKE) in GPU_PROFILES:
        return pd.DataFrame(here)
    path = recorded / f"{name}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return pd.DataFrame({**here, "reference run": [_short(known.get(key, "not recorded")) for key in metrics]})


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
