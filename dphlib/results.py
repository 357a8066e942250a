"""The results of a run as files: what is recorded, and every figure, table and claim drawn from it.

`Results` holds the recorded tables. `FIGURES` and `TABLES` name each product once; a notebook shows one by its name,
`draw` writes them all, and the same numbers give the same bytes, with or without the stages they came from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from dphlib import claims, plots, run_plots, tables
from dphlib.config import METHOD_CONFIGS, Profile, RunConfig
from dphlib.figure_style import save as save_figure
from dphlib.files import write_json, write_text
from dphlib.method_plot import method_figure
from dphlib.runs import RunError, atomic_path, read_jsonl
from dphlib.stages import Pipeline

REFERENCE = Path(__file__).resolve().parent.parent / "artifacts" / "reference"
"""The committed results of a full CPU run."""

_SORTED_BY = ["method", "variant", "seed", "step", "suite", "problem_id", "sample"]


@dataclass(frozen=True, slots=True)
class Results:
    """The recorded tables of a run.

    Args:
        settings: the profile.
        records: `EvalRecord` rows.
        train_logs: iterations of all runs, with method, variant and seed.
        presample: a row a training prompt: suite, problem_id, family, correct of k.
        cost: iterations of the cost measurement; None before it was made.
    """

    settings: Profile
    records: pd.DataFrame
    train_logs: pd.DataFrame
    presample: pd.DataFrame
    cost: pd.DataFrame | None = None

    @property
    def sql_presample(self) -> pd.DataFrame:
        return self.presample[self.presample["suite"] == "train"]

    def write(self, root: Path) -> None:
        """`records.parquet`, `train_log/<run>.jsonl`, `presample.csv`, `cost.csv`."""
        records = self.records.sort_values(_SORTED_BY, kind="stable", ignore_index=True)
        for column in ("method", "variant", "suite", "subset", "problem_id", "outcome", "style", "answer_hash"):
            records[column] = records[column].astype("category")
        with atomic_path(root / "records.parquet") as path:
            records.to_parquet(path, index=False, compression="zstd", compression_level=12)
        for (method, variant, seed), rows in self.train_logs.groupby(["method", "variant", "seed"], sort=True):
            lines = [
                json.dumps(row, allow_nan=False) for row in _plain(rows.drop(columns=["method", "variant", "seed"]))
            ]
            name = RunConfig(method, variant, int(seed)).name
            write_text(root / "train_log" / f"{name}.jsonl", "\n".join(lines) + "\n")
        for name, frame in (("presample", self.presample), ("cost", self.cost)):
            if frame is not None:
                write_text(root / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n", float_format="%.6g"))

    @classmethod
    def load(cls, root: Path, settings: Profile) -> Results:
        """What `write` wrote.

        Raises:
            RunError: no recorded run there.
        """
        if not (root / "records.parquet").is_file():
            raise RunError(
                f"no recorded run in {root}: records.parquet is missing; run ./run_all.sh {settings.name} first"
            )
        records = pd.read_parquet(root / "records.parquet")
        records = records.astype({c: str for c in records.columns if isinstance(records[c].dtype, pd.CategoricalDtype)})
        logs = []
        for path in sorted((root / "train_log").glob("*.jsonl")):
            method, variant, seed = path.stem.rsplit("-", 2)
            identity = {"method": method, "variant": variant, "seed": int(seed.removeprefix("seed"))}
            logs += [{**identity, **row} for row in read_jsonl(path)]
        cost = root / "cost.csv"
        return cls(
            settings, records, pd.DataFrame(logs), pd.read_csv(root / "presample.csv"),
            pd.read_csv(cost) if cost.is_file() else None,
        )  # fmt: skip


def _plain(frame: pd.DataFrame) -> list[dict]:
    rows = frame.to_dict("records")
    return [{key: None if pd.isna(value) else value for key, value in row.items()} for row in rows]


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
    "fig8_pass_over_steps": lambda r: plots.pass_over_steps(r.records),
    "fig9_base": lambda r: run_plots.base_regime(
        r.records, r.sql_presample, k=r.settings.presample.k, threshold=r.settings.presample.threshold
    ),
}

TABLES: dict[str, Callable[[Results], pd.DataFrame]] = {
    "table1": lambda r: tables.table1(r.records),
    "table2": lambda r: tables.table2(r.records),
    "table3": lambda r: tables.table3(r.records),
    "table4": lambda r: tables.table4(
        r.records, r.settings.presample.k, r.settings.presample.threshold, r.settings.presample.k
    ),
    "table5": lambda r: tables.table5(r.records, METHOD_CONFIGS["dph_js"].eta),
    "methods": lambda r: tables.methods_table(r.settings),
}


def _cost(results: Results) -> pd.DataFrame:
    if results.cost is None:
        raise RunError("the cost of an iteration was not measured yet: run notebook 07 first")
    return results.cost


def figure(name: str, results: Results, root: Path) -> Figure:
    """Draws one figure of `FIGURES`, writes it to `figures/` as PNG and SVG, and returns it."""
    drawn = FIGURES[name](results)
    save_figure(drawn, root / "figures", name)
    return drawn


def table(name: str, results: Results, root: Path) -> pd.DataFrame:
    """Makes one table of `TABLES`, writes it to `tables/` as CSV, and returns it."""
    made = TABLES[name](results)
    tables.to_csv(made, root / "tables" / f"{name}.csv")
    return made


def judge(results: Results, root: Path) -> list[claims.ClaimResult]:
    """Judges every claim and writes `claims.json`."""
    judged = claims.evaluate_claims(results.records, results.train_logs, results.settings.name)
    write_text(root / "claims.json", claims.to_json(judged))
    return judged


def draw(results: Results, root: Path, names: Sequence[str] = (*FIGURES, *TABLES)) -> list[claims.ClaimResult]:
    """Every figure, table and claim into `root`."""
    for name in names:
        if name in FIGURES:
            plt.close(figure(name, results, root))
        else:
            table(name, results, root)
    return judge(results, root)


def collect(pipeline: Pipeline, runs: Sequence[RunConfig], with_cost: bool = False) -> Results:
    """The recorded tables of the base and of `runs`, building what is not there yet."""
    records = pipeline.evaluate(runs)
    rows = [
        {"suite": suite, "problem_id": g.problem.id, "family": g.problem.meta.get("family", ""), "correct": g.correct}
        for suite in ("train", "sums_train")
        for g in pipeline.groups(suite)
    ]
    cost = pipeline.cost() if with_cost else None
    return Results(pipeline.settings, records, pipeline.train_logs(runs), pd.DataFrame(rows), cost)


def close_notebook(name: str, root: Path, metrics: Mapping[str, Any]) -> None:
    """Writes a notebook's numbers to `metrics/<name>.json`, which tests and readers use; prints where."""
    path = root / "metrics" / f"{name}.json"
    write_json(path, dict(metrics))
    print(f"{name}: {len(metrics)} numbers in {path}")


def beside_reference(name: str, root: Path, metrics: Mapping[str, Any], reference: Path = REFERENCE) -> pd.DataFrame:
    """A notebook's numbers beside those of the committed reference run: what a reader should see.

    Args:
        name: the notebook, such as `01_divergences`.
        root: run folder; its name, the profile's, heads the column of the numbers made here.
        metrics: what is handed to `close_notebook`.
        reference: folder of the reference run.

    Returns:
        One row a number. Without a reference run, or for a number that it lacks, the second column says so.
    """
    path = reference / "metrics" / f"{name}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    rows = [
        {"number": key, f"here ({root.name})": _short(value), "reference run": _short(known.get(key, "not recorded"))}
        for key, value in metrics.items()
    ]
    return pd.DataFrame(rows)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
