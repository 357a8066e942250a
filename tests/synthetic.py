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

from dphlib.settings.methods import CONTROLS, METHODS
from dphlib.settings.profiles import Profile
from dphlib.settings.studies import study_runs
from dphlib.world.sums import SUBSETS

STYLES = ("direct", "aliased", "nested", "stepwise")
STEPS = 45
PROBLEMS = {"in_domain": 24, "cross_domain": 18, "out_of_domain": 20}
SAMPLES = {"in_domain": 32, "cross_domain": 16, "out_of_domain": 16}
ABLATIONS = (
    ("dph_js", "eta=0.025"), ("dph_js_definition", "eta=0.025"), ("dph_js", "eta=0.125"),
    ("dph_js_definition", "eta=0.125"), ("dph_f", "threshold=8"), ("dph_js", "threshold=8"),
    ("grpo", "domain=sums"), ("dph_f", "domain=sums"), ("dph_js", "domain=sums"),
)  # fmt: skip
# method: (sharpening of the styles, accuracy of a right style, what is left of the sums)
SHAPE = {
    "base": (0.0, 0.62, 1.00), "grpo": (4.0, 0.88, 0.35), "dapo": (3.6, 0.89, 0.40), "rkl": (3.0, 0.87, 0.15),
    "alpha_0.2": (2.2, 0.87, 0.70), "alpha_0.5": (1.9, 0.88, 0.80), "alpha_0.8": (1.6, 0.88, 0.85),
    "dph_f": (1.2, 0.87, 0.95), "dph_js": (1.4, 0.90, 0.92), "dph_js_definition": (1.3, 0.90, 0.93),
    "grpo_dexp": (3.6, 0.88, 0.40), "sft_rehearsal": (1.3, 0.86, 0.93), "dph_f_all": (0.9, 0.85, 0.97),
}  # fmt: skip


def _run(method: str, variant: str, seed: int, step: int, samples: Mapping[str, int], greedy: bool) -> pd.DataFrame:
    rng = np.random.default_rng([(*METHODS, *CONTROLS).index(method), sum(map(ord, variant)), seed + 1, step])
    sharp, accuracy, sums = SHAPE[method]
    progress = step / STEPS
    sharp, accuracy = sharp * progress + rng.normal(0, 0.2) * (seed >= 0), 0.62 + (accuracy - 0.62) * progress
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
        problem, draw = np.divmod(np.arange(problems * draws), draws)
        sample = draw - greedy
        tokens = rng.integers(12, 30, size=problem.size)
        entropy = np.full(problem.size, round(0.45 / (1 + sharp), 4))
        frames.append(
            pd.DataFrame(
                {
                    "suite": suite,
                    "subset": [SUBSETS[p % 5] if suite == "out_of_domain" else f"family{p % 4}" for p in problem],
                    "problem_id": [f"{suite}-{p:03d}" for p in problem],
                    "sample": sample,
                    "correct": correct_PG.ravel(),
                    "outcome": np.where(correct_PG.ravel(), "correct", "wrong"),
                    "style": np.where(rng.random(problem.size) < 0.01, "other", np.array(STYLES)[style_PG.ravel()]),
                    "answer_hash": [
                        f"{s:04x}{c:04x}" for s, c in zip(style_PG.ravel(), correct_PG.ravel(), strict=True)
                    ],
                    "tokens": tokens,
                    "truncated": rng.random(problem.size) < 0.005,
                    "entropy": entropy,
                    "logprob": -entropy * tokens,
                    "base_logprob": np.where((sample >= 0) & (sample < 4), -(entropy + 0.1 * sharp) * tokens, np.nan),
                    "temperature": np.where(sample < 0, 0.0, 1.0),
                }
            )
        )
    frame = pd.concat(frames, ignore_index=True)
    run = pd.DataFrame({"method": method, "variant": variant, "seed": seed, "step": step}, index=frame.index)
    return pd.concat([run, frame], axis=1).assign(top_p=1.0, max_new_tokens=48)


def _suites(variant: str) -> dict[str, int]:
    """An ablation is evaluated where its table has a column."""
    return {s: n for s, n in SAMPLES.items() if (s == "out_of_domain") == (variant == "domain=sums")}


def make_records(
    methods: Sequence[str] = METHODS, seeds: Sequence[int] = (0, 1, 2), *, ablations: bool = True, steps: bool = True
) -> pd.DataFrame:
    """The frame of `records.parquet`: base, main runs, ablations with two seeds, in-domain rows at steps 5, 15, 30."""
    parts = []
    for method in methods:
        if method == "base":
            parts.append(_run("base", "main", -1, 0, SAMPLES, greedy=True))
            continue
        for seed in seeds:
            for step in (5, 15, 30) if steps else ():
                parts.append(_run(method, "main", seed, step, {"in_domain": 16}, greedy=False))
            parts.append(_run(method, "main", seed, STEPS, SAMPLES, greedy=True))
    for method, variant in ABLATIONS if ablations else ():
        parts += [
            _run(method, variant, seed, STEPS, _suites(variant), greedy=True)
            for seed in list(seeds)[:2]
            if method in methods
        ]
    return pd.concat(parts, ignore_index=True)


def make_study_records(settings: Profile, names: Sequence[str]) -> pd.DataFrame:
    """Final records of the base and of every run of some studies, on all suites."""
    runs = [_run("base", "main", -1, 0, SAMPLES, greedy=True)]
    for run in study_runs(settings, names):
        runs.append(_run(run.method, run.variant, run.seed, STEPS, SAMPLES, greedy=True))
    return pd.concat(runs, ignore_index=True)


def make_hard_records(
    methods: Sequence[str] = ("base", "grpo", "rkl", "dph_f", "dph_js"), seeds: Sequence[int] = (0, 1), draws: int = 64
) -> pd.DataFrame:
    """The frame of `hard.parquet`: every second problem of two suites, many answers, no greedy one."""
    samples = dict.fromkeys(("in_domain", "out_of_domain"), draws)
    runs = [(m, seed) for m in methods for seed in ((-1,) if m == "base" else seeds)]
    frames = [_run(m, "main", seed, STEPS * (m != "base"), samples, greedy=False) for m, seed in runs]
    records = pd.concat(frames, ignore_index=True)
    return records[records["problem_id"].str.endswith(tuple("02468"))].reset_index(drop=True)


def make_train_logs(methods: Sequence[str] = METHODS, seeds: Sequence[int] = (0, 1, 2)) -> pd.DataFrame:
    """The rows of `train_log.parquet`, with method, variant and seed; the KL to the base every fifth iteration."""
    rows = []
    for method in (m for m in methods if m != "base"):
        sharp, accuracy, _ = SHAPE[method]
        online = method in ("rkl", "dph_js_definition")
        for seed in seeds:
            rng = np.random.default_rng([METHODS.index(method), seed])
            for i in range(1, STEPS + 1):
                p = i / STEPS
                phases = dict(
                    sample_s=0.4 + 0.05 * rng.random(), verify_s=0.1, reference_s=0.15 * online,
                    update_s=0.3 + 0.05 * (method.startswith(("dph", "alpha"))),
                )  # fmt: skip
                rows.append(
                    dict(
                        method=method, variant="main", seed=seed, iteration=i,
                        reward=0.4 + (accuracy - 0.45) * p + rng.normal(0, 0.03),
                        entropy=max(0.02, 0.45 * (1 - p * sharp / 4.5) + rng.normal(0, 0.01)),
                        kl_to_base=0.12 * sharp * p + 0.01 if i % 5 in (0, 1) else None,
                        response_tokens=20 + rng.normal(0, 0.5), loss=0.1, loss_explore=0.1,
                        loss_near_perfect=0.02 * (1 - p) + 0.002 if method.startswith(("dph", "alpha")) else 0.0,
                        grad_norm=1.0, clip_fraction=0.1, truncated=0.0, informative_groups=9, rl_rows=128,
                        rehearsal_rows=16 * method.startswith(("dph", "alpha")),
                        reference_tokens=5000 * (method == "rkl") + 600 * (method == "dph_js_definition"),
                        policy_tokens=5200 + int(rng.integers(300)), **phases, step_s=sum(phases.values()),
                        peak_gib=0.9 + 0.05 * online,
                    )
                )  # fmt: skip
    return pd.DataFrame(rows)


COST_COLUMNS = [
    "method", "step", "sample_s", "verify_s", "reference_s", "update_s", "step_s", "peak_gib",
    "reference_tokens", "policy_tokens",
]  # fmt: skip


def make_cost(methods: Sequence[str] = ("grpo", "rkl", "dph_f", "dph_js")) -> pd.DataFrame:
    """Eight measured iterations a method, for the figure of the cost."""
    logs = make_train_logs(methods, (0,)).rename(columns={"iteration": "step"})
    return logs.loc[logs["step"] <= 8, COST_COLUMNS].reset_index(drop=True)


def make_presample(problems: int = 128, k: int = 8) -> pd.DataFrame:
    """Correct answers of k for each training problem."""
    rng = np.random.default_rng(5)
    chance = rng.beta(0.9, 0.9, size=problems)
    return pd.DataFrame({"problem_id": [f"train-{i:03d}" for i in range(problems)], "correct": rng.binomial(k, chance)})


def make_divergences() -> pd.DataFrame:
    """Exact forward KL and JS generators against d, in numpy, as notebook 01 hands them to its figure."""
    d = np.linspace(-4, 2.5, 131)
    u = np.exp(d)
    curves = {
        "forward_kl": (np.expm1(d) - d, u - 1),
        "js": ((u * d - (u + 1) * np.log((u + 1) / 2)) / 2, u * np.log(2 * u / (u + 1)) / 2),
        "reverse_kl": (u * d - u + 1, u * d),
        "alpha_0.5": ((np.sqrt(u) - 0.5 * u - 0.5) / -0.25, (0.5 * np.sqrt(u) - 0.5 * u) / -0.25),
    }
    return pd.concat([pd.DataFrame({"name": n, "d": d, "value": v, "gradient": g}) for n, (v, g) in curves.items()])


def make_tables(records: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The tables of the records, by the names of their files."""
    from dphlib.analysis import tables
    from dphlib.settings.profiles import profile
    from dphlib.stats import FinalScores

    scores = FinalScores(records)
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

    folder.mkdir(parents=True, exist_ok=True)
    frame = make_records(steps=False, **records)
    frame.to_parquet(folder / "records.parquet", index=False)
    (folder / "claims.json").write_text(to_json(evaluate_claims(frame, make_train_logs(), "cpu")))
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
        "profile": "cpu", "seeds": [0, 1, 2], "seconds": {"01_divergences": 31.5, "04_train": 1804.0},
        "versions": {"python": "3.11.9", "torch": "2.13.0"}, "peak_gib": 1.234, "peak_gib_largest_child": 0.9,
        "machine": {"cpu": "a processor", "cores": 2, "memory_gib": 7.8, "os": "Linux", "gpus": []}, "files": {},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
