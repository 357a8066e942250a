"""Made-up records of a whole run, the same each time: every method, variant, seed, suite; logs, cost, a run folder.

    from synthetic import make_records

The numbers have the paper's shape only so that figures can be looked at; they are nobody's results.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dphlib.rivals import RIVALS
from dphlib.scores import with_bases
from dphlib.settings.methods import CONTROLS, METHODS
from dphlib.settings.profiles import Profile
from dphlib.settings.studies import study_runs
from dphlib.types import STYLE_COUNTS, VALIDATION, EvalRecord
from dphlib.world.sums import SUBSETS

STEPS = 45
PROBLEMS = {"in_domain": 24, "cross_domain": 18, "out_of_domain": 20, VALIDATION: 48}
SAMPLES = {"in_domain": 32, "cross_domain": 16, "out_of_domain": 16}
ABLATIONS = (
    *((method, f"eta={eta}") for eta in (0.04, 0.2) for method in ("dph_js", "dph_js_definition")),
    *((method, "threshold=8") for method in ("dph_f", "dph_js")),
    *((method, "domain=sums") for method in ("grpo", "dph_f", "dph_js")),
)
# method: (sharpening of the styles, accuracy of a right style, what is left of the sums)
SHAPE = {
    "base": (0.0, 0.62, 1.00),
    "grpo": (4.0, 0.88, 0.35),
    "dapo": (3.6, 0.89, 0.40),
    "rkl": (3.0, 0.87, 0.15),
    "alpha_0.2": (2.2, 0.87, 0.70),
    "alpha_0.5": (1.9, 0.88, 0.80),
    "alpha_0.8": (1.6, 0.88, 0.85),
    "dph_f": (1.2, 0.87, 0.95),
    "dph_js": (1.4, 0.90, 0.92),
    "dph_js_definition": (1.3, 0.90, 0.93),
    "grpo_dexp": (3.6, 0.88, 0.40),
    "sft_rehearsal": (1.3, 0.86, 0.93),
    "dph_f_all": (0.9, 0.85, 0.97),
    "dph_f_explore_all": (1.1, 0.86, 0.94),
    "dph_f_rehearse_all": (1.0, 0.86, 0.96),
    "rkl_k2": (3.2, 0.87, 0.20),
    "dph_rkl": (1.8, 0.87, 0.80),
    **dict.fromkeys(RIVALS, (2.5, 0.87, 0.60)),
}


def make_rows(
    method: str = "base",
    seed: int = 0,
    correct: Sequence[Sequence[object]] = ((True, False),),
    *,
    greedy: Sequence[object] = (),
    **columns: object,
) -> pd.DataFrame:
    """Records of one run on one suite, whose numbers can be counted by hand.

    Args:
        correct: one entry per problem, one flag per sampled answer.
        greedy: one flag per problem, for its greedy answer.
        columns: other values, one or one per row; the rows of greedy answers come last.
    """
    flags = [*correct, *([flag] for flag in greedy)]
    problem = np.array([*range(len(correct)), *range(len(greedy))])
    drawn, right = (np.array([function(row) for row in flags]) for function in (len, np.count_nonzero))
    values = {
        "method": method,
        "variant": "main",
        "seed": seed,
        "base": 0,
        "step": 0 if method == "base" else 5,
        "suite": "in_domain",
        "subset": np.where(problem % 2, "family1", "family0"),
        "problem_id": [f"p{p}" for p in problem],
        "temperature": np.repeat([1.0, 0.0], [len(correct), len(greedy)]),
        "top_p": 1.0,
        "max_new_tokens": 64,
        "drawn": drawn,
        "n": drawn,
        "correct": right,
        "direct": drawn,
        **dict.fromkeys(STYLE_COUNTS[1:], 0),
        "distinct": np.minimum(right, 1),
        "tokens": 10 * drawn,
        "truncated": 0,
        "entropy": 5.0 * drawn,
        "compared_tokens": 10 * drawn,
        "log_ratio": 1.0 * drawn,
    }
    return pd.DataFrame(values).assign(**columns)


def with_styles(records: pd.DataFrame, styles: int) -> pd.DataFrame:
    """The records with the answers to each problem spread over the first `styles` styles as evenly as they can be."""
    counts = {name: (records["drawn"] + styles - 1 - i) // styles for i, name in enumerate(STYLE_COUNTS[:styles])}
    return records.assign(**{**dict.fromkeys(STYLE_COUNTS, 0), **counts})


def with_draws(records: pd.DataFrame, most: int) -> pd.DataFrame:
    """The records as if no problem had been answered more than `most` times, with as many correct answers as fit in."""
    return records.assign(**{name: records[name].clip(upper=most) for name in ("drawn", "n", "correct")})


def _run(method: str, variant: str, seed: int, step: int, samples: Mapping[str, int], greedy: bool) -> pd.DataFrame:
    trained = method != "base"
    rng = np.random.default_rng([(*METHODS, *CONTROLS).index(method), sum(map(ord, variant)), seed + trained, step])
    sharp, accuracy, sums = SHAPE[method]
    progress = step / STEPS
    sharp = sharp * progress + rng.normal(0, 0.2) * trained
    accuracy = 0.62 + (accuracy - 0.62) * progress
    frames = []
    for suite, count in samples.items():
        problems = PROBLEMS[suite]
        world = np.random.default_rng([len(suite), problems])  # the same problems for every run
        right_PS = world.random((problems, 4)) < world.choice([0.25, 1.0], size=(problems, 1))
        logits_S = sharp * np.array([0.2, 0.4, 1.0, 0.3])
        share_S = np.exp(logits_S) / np.exp(logits_S).sum()
        reliability = accuracy * (1 - (1 - sums) * progress if suite == "out_of_domain" else 1.0)
        draws = count + greedy
        style_PG = rng.choice(4, size=(problems, draws), p=share_S)
        if greedy:
            style_PG[:, 0] = share_S.argmax()
        correct_PG = right_PS[np.arange(problems)[:, None], style_PG] & (rng.random((problems, draws)) < reliability)
        tokens_PG = rng.integers(12, 30, size=(problems, draws))
        told_PG = np.where(rng.random((problems, draws)) < 0.01, STYLE_COUNTS.index("other"), style_PG)
        truncated_PG = rng.random((problems, draws)) < 0.005
        of_problem = {
            "suite": suite,
            "subset": [SUBSETS[p % 6] if suite == "out_of_domain" else f"family{p % 4}" for p in range(problems)],
            "problem_id": [f"{suite}-{p:03d}" for p in range(problems)],
        }
        for temperature, part in ((1.0, slice(greedy, None)), (0.0, slice(greedy))):
            style, correct, tokens, told = (x[:, part] for x in (style_PG, correct_PG, tokens_PG, told_PG))
            total, compared = tokens.sum(axis=1), tokens[:, :4].sum(axis=1) if temperature else 0
            columns = {
                "temperature": temperature,
                "drawn": tokens.shape[1],
                "n": tokens.shape[1],
                "correct": correct.sum(axis=1),
                **{name: (told == i).sum(axis=1) for i, name in enumerate(STYLE_COUNTS)},
                "distinct": sum((correct & (style == i)).any(axis=1).astype(int) for i in range(4)),
                "tokens": total,
                "truncated": truncated_PG[:, part].sum(axis=1),
                "entropy": round(0.45 / (1 + sharp), 4) * total,
                "compared_tokens": compared,
                "log_ratio": 0.1 * sharp * compared,
            }
            frames += [pd.DataFrame({**of_problem, **columns})] if tokens.shape[1] else []
    settings = {"method": method, "variant": variant, "seed": seed, "step": step, "top_p": 1.0, "max_new_tokens": 48}
    columns = [*EvalRecord.__slots__, "base"]
    return pd.concat(frames, ignore_index=True).assign(**settings, base=0)[columns]


def _suites(variant: str) -> dict[str, int]:
    """An ablation is evaluated where its table has a column."""
    return {s: n for s, n in SAMPLES.items() if (s == "out_of_domain") == (variant == "domain=sums")}


def make_records(
    methods: Sequence[str] = METHODS,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    ablations: bool = True,
    steps: bool = True,
    validation: bool = False,
    bases: Sequence[int] = (0,),
) -> pd.DataFrame:
    """The frame of `records.parquet`: base models, main runs, ablations with two seeds, rows at steps 5, 15, 30.

    With `validation` main runs have way-points every fifth step on that suite, and the base models a row there.
    """
    parts, way = [], range(5, STEPS + 1, 5) if validation else ()
    for method in methods:
        if method == "base":
            suites = SAMPLES | ({VALIDATION: 8} if validation else {})
            parts += [_run("base", "main", base, 0, suites, greedy=True) for base in bases]
            continue
        for seed in seeds:
            early = (5, 15, 30) if steps else ()
            parts += [_run(method, "main", seed, step, {"in_domain": 16}, greedy=False) for step in early]
            parts += [_run(method, "main", seed, step, {VALIDATION: 8}, greedy=True) for step in way]
            parts.append(_run(method, "main", seed, STEPS, SAMPLES, greedy=True))
    for method, variant in ABLATIONS if ablations else ():
        if method in methods:
            parts += [_run(method, variant, seed, STEPS, _suites(variant), greedy=True) for seed in list(seeds)[:2]]
    return with_bases(pd.concat(parts, ignore_index=True), max(bases) + 1)


def make_study_records(settings: Profile, names: Sequence[str]) -> pd.DataFrame:
    """Final records of the base and of every run of some studies, on all suites."""
    runs = [_run("base", "main", 0, 0, SAMPLES, greedy=True)]
    for run in study_runs(settings, names):
        runs.append(_run(run.method, run.variant, run.seed, STEPS, SAMPLES, greedy=True))
    return pd.concat(runs, ignore_index=True)


def make_waypoints(records: pd.DataFrame, steps: Sequence[int] = (5, 15, 30, STEPS)) -> pd.DataFrame:
    """`analysis.waypoints.waypoint_table` of the runs in some records: of the base and at each of `steps`."""
    from dphlib.analysis.waypoints import waypoint_table

    runs = records[["method", "variant", "seed"]].drop_duplicates().itertuples(index=False)
    ways = [(*run, step) for run in runs for step in ((0,) if run.method == "base" else steps)]
    rows = [_run(*way, {"in_domain": 8}, greedy=True) for way in ways]
    return waypoint_table(pd.concat(rows, ignore_index=True).assign(suite=VALIDATION))


def make_hard_records(
    methods: Sequence[str] = ("base", "grpo", "rkl", "dph_f", "dph_js"), seeds: Sequence[int] = (0, 1), draws: int = 64
) -> pd.DataFrame:
    """The frame of `hard.parquet`: every second problem of two suites, many answers, none of them greedy."""
    samples = dict.fromkeys(("in_domain", "out_of_domain"), draws)
    runs = [(m, seed) for m in methods for seed in ((0,) if m == "base" else seeds)]
    frames = [_run(m, "main", seed, STEPS * (m != "base"), samples, greedy=False) for m, seed in runs]
    records = pd.concat(frames, ignore_index=True)
    return records[records["problem_id"].str.endswith(tuple("02468"))].reset_index(drop=True)


def make_temperature_records(
    methods: Sequence[str] = ("base", "grpo", "dph_f"), seeds: Sequence[int] = (0, 1), draws: int = 16
) -> pd.DataFrame:
    """The frame of `temperature.parquet`: the higher the temperature, the earlier the step whose numbers it has."""
    frames = []
    for method, seed in [(m, seed) for m in methods for seed in ((0,) if m == "base" else seeds)]:
        for temperature, step in ((0.5, STEPS), (0.7, 40), (1.0, 30), (1.3, 15)):
            rows = _run(method, "main", seed, step, {"in_domain": draws}, greedy=False)
            frames.append(rows.assign(temperature=temperature, step=STEPS * (method != "base")))
    return pd.concat(frames, ignore_index=True)


def make_train_logs(methods: Sequence[str] = METHODS, seeds: Sequence[int] = (0, 1, 2)) -> pd.DataFrame:
    """The rows of `train_log.parquet`, with method, variant and seed; the KL to the base every fifth iteration."""
    runs = [(method, seed) for method in methods if method != "base" for seed in seeds]
    return pd.concat([_train_log(method, seed) for method, seed in runs], ignore_index=True)


def _train_log(method: str, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng([(*METHODS, *CONTROLS).index(method), seed])
    sharp, accuracy, _ = SHAPE[method]
    online, rehearses = method in ("rkl", "dph_js_definition"), method.startswith(("dph", "alpha"))
    iteration = np.arange(1, STEPS + 1)
    progress = iteration / STEPS
    log = pd.DataFrame(
        {
            "method": method,
            "variant": "main",
            "seed": seed,
            "iteration": iteration,
            "reward": 0.4 + (accuracy - 0.45) * progress + rng.normal(0, 0.03, STEPS),
            "entropy": np.maximum(0.02, 0.45 * (1 - progress * sharp / 4.5) + rng.normal(0, 0.01, STEPS)),
            "kl_to_base": np.where(np.isin(iteration % 5, (0, 1)), 0.12 * sharp * progress + 0.01, np.nan),
            "response_tokens": 20 + rng.normal(0, 0.5, STEPS),
            "loss": 0.1,
            "loss_near_perfect": (0.02 * (1 - progress) + 0.002) * rehearses,
            "informative_groups": 9,
            "rl_rows": 128,
            "rehearsal_rows": 16 * rehearses,
            "reference_tokens": 5000 * (method == "rkl") + 600 * (method == "dph_js_definition"),
            "policy_tokens": 5200 + rng.integers(300, size=STEPS),
            "sample_s": 0.4 + 0.05 * rng.random(STEPS),
            "verify_s": 0.1,
            "reference_s": 0.15 * online,
            "update_s": 0.3 + 0.05 * rehearses,
            "peak_gib": 0.9 + 0.05 * online,
        }
    )
    return log.assign(step_s=log[["sample_s", "verify_s", "reference_s", "update_s"]].sum(axis=1))


def make_cost(methods: Sequence[str] = ("grpo", "rkl", "dph_f", "dph_js")) -> pd.DataFrame:
    """Eight measured iterations per method, for the figure of the cost."""
    logs = make_train_logs(methods, (0,)).rename(columns={"iteration": "step"})
    columns = ["method", "step", *logs.filter(regex="_s$|_gib$|_tokens$").columns.drop("response_tokens")]
    return logs.loc[logs["step"] <= 8, columns].reset_index(drop=True)


def make_presample(problems: int = 128, k: int = 8) -> pd.DataFrame:
    """Correct answers of k for each training problem."""
    rng = np.random.default_rng(5)
    chance = rng.beta(0.9, 0.9, size=problems)
    ids = [f"train-{i:03d}" for i in range(problems)]
    return pd.DataFrame({"base": 0, "problem_id": ids, "correct": rng.binomial(k, chance)})


def make_tables(records: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The tables of the records, by the names of their files."""
    from dphlib.analysis import tables
    from dphlib.scores import ArmScores
    from dphlib.settings.profiles import profile

    scores = ArmScores.final(records)
    made = {name: getattr(tables, name)(scores) for name in ("table1", "table2", "table3", "table4", "table5")}
    return {**made, "methods": tables.methods_table(profile("cpu"))}


def make_run(folder: Path, **records: object) -> Path:
    """A results folder as the report finds it: records, claims, tables, two figures, an executed notebook, manifest."""
    import nbformat

    from dphlib.analysis import tables
    from dphlib.analysis.claims import evaluate_claims, to_json
    from dphlib.figures.results import styles
    from dphlib.figures.style import save
    from dphlib.figures.training import cost_figure
    from dphlib.scores import ArmScores

    folder.mkdir(parents=True, exist_ok=True)
    frame = make_records(steps=False, **records)
    frame.to_parquet(folder / "records.parquet", index=False)
    (folder / "claims.json").write_text(to_json(evaluate_claims(ArmScores.final(frame), make_train_logs(), "cpu")))
    for name, table in make_tables(frame).items():
        tables.to_csv(table, folder / "tables" / f"{name}.csv")
    save(styles(frame), folder / "figures", "fig4_styles")
    save(cost_figure(make_cost()), folder / "figures", "fig6_cost")
    html = "<table><tr><td>8</td></tr></table>"
    output = nbformat.v4.new_output("execute_result", {"text/plain": "k", "text/html": html}, execution_count=1)
    source = "import pandas as pd\npd.DataFrame({'k': [1, 8]})"
    cells = [
        nbformat.v4.new_markdown_cell("# 01 Divergences\n\nThe generator $f(u) = u - 1 - \\log u$.", id="head"),
        nbformat.v4.new_code_cell(source, id="code", execution_count=1, outputs=[output]),
    ]
    (folder / "notebooks").mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "notebooks" / "01_divergences.ipynb")
    manifest = {
        "profile": "cpu",
        "seeds": [0, 1, 2],
        "seconds": {"01_divergences": 31.5, "04_train": 1804.0},
        "versions": {"python": "3.11.9", "torch": "2.13.0"},
        "peak_gib": 1.234,
        "peak_gib_largest_child": 0.9,
        "machine": {"cpu": "a processor", "cores": 2, "memory_gib": 7.8, "os": "Linux", "gpus": []},
        "files": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
