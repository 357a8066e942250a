"""The explorer: one page on which a reader chooses suite, methods, runs, k and a problem, and sees what is recorded.

    report/explorer.html    opens from a disk and loads nothing: data, style and script are in it

Statistics are computed here: the page has the intervals of whole arms (`intervals`), and counts of which its script
makes means of the runs that are chosen. Input is `records.parquet`, final models only, and `answers.parquet` where it
is there; no torch. The same files give the same bytes.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dphlib import stats
from dphlib.analysis.labels import LOOKS, STYLE_COLOURS, SUITES, label
from dphlib.analysis.retention import AGAIN
from dphlib.intervals import Interval, interval
from dphlib.report.facts import read_json
from dphlib.report.rendering import TEMPLATES
from dphlib.runtime.files import RunError, write_text
from dphlib.scores import BASE, ArmScores, keep_and_explore, with_bases
from dphlib.settings.methods import CONFIGS, HEADLINE, METHODS
from dphlib.settings.profiles import profile
from dphlib.settings.variants import MAIN, parse

PAGE = "explorer.html"
DIGITS = string.digits + string.ascii_letters + "-_"
"""Of base 64, none of which JSON or HTML would write as several characters."""
_DECIMALS = 3
"""Of numbers in per cent: two more than are shown."""


def build_explorer(run_root: Path, out: Path | None = None) -> Path:
    """Writes `report/explorer.html` of a results folder and returns it.

    Args:
        run_root: with `records.parquet`, `manifest.json` and, where it was kept, `answers.parquet`.
        out: folder that the page is written to as `report/explorer.html`; the same unless given.

    Raises:
        RunError: no records or no manifest there.
    """
    run_root = Path(run_root)
    manifest = read_json(run_root / "manifest.json")
    if not (path := run_root / "records.parquet").is_file():
        raise RunError(f"{path} is not there; ./run_all.sh {manifest['profile']} writes it")
    records, answers = pd.read_parquet(path), run_root / "answers.parquet"
    if "base" not in records:  # as in `Results.load`
        records = with_bases(records, profile(manifest["profile"]).bases)
    data = explorer_data(records, pd.read_parquet(answers) if answers.is_file() else None, manifest["profile"])
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    page = Path(out or run_root) / "report" / PAGE
    template = TEMPLATES.get_template("explorer.html.j2")
    write_text(page, template.render(data=text, profile=manifest["profile"], ours=manifest.get("ours", "")))
    return page


def explorer_data(records: pd.DataFrame, answers: pd.DataFrame | None, profile_name: str) -> dict[str, Any]:
    """What the page shows, as JSON has it.

    Args:
        records: `EvalRecord` rows with the column `base`.
        answers: as `answers.parquet` has them; None where none were kept.

    Returns:
        profile, digits; bases: the index for each seed of a run; again: how the base against itself is called; styles;
        methods, one per arm; suites, each with its problems and of each arm the counts (`encoded`, runs x problems) and
        intervals (in per cent, an entry per k); answers by suite and problem.
    """
    rows = stats.final(records[records["suite"].isin(list(SUITES))])
    rows = rows[[parse(str(variant))[0] != "hidden" for variant in rows["variant"]]]  # those have other problems
    scores, arms, trained = ArmScores.final(rows), _arms(rows), rows[rows["method"] != BASE]
    known = stats.has_styles(rows)
    return {
        "profile": profile_name,
        "digits": DIGITS,
        "bases": dict(sorted(set(zip(trained["seed"].tolist(), trained["base"].tolist(), strict=True)))),
        "again": AGAIN,
        "styles": [{"name": name, "colour": STYLE_COLOURS[name]} for name in STYLE_COLOURS] if known else [],
        "methods": [_method(method, variant) for method, variant in arms],
        "suites": [_suite(scores, rows, suite, arms) for suite in SUITES if suite in set(rows["suite"])],
        "answers": _answers(answers) if answers is not None else {},
    }


def _arms(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Methods with variant in the order of `METHODS` and the controls, each method's main run first."""
    order = [BASE, *CONFIGS]
    there = {(str(m), str(v)) for m, v in rows[["method", "variant"]].drop_duplicates().to_numpy()}
    return sorted(there, key=lambda arm: (arm[1] != MAIN, order.index(arm[0]), arm[1]))


def _method(method: str, variant: str) -> dict[str, Any]:
    look = LOOKS[method]
    dashes = {"-": ""}.get(look.line) if isinstance(look.line, str) else " ".join(f"{2 * x:g}" for x in look.line[1])
    group = "studies" if variant != MAIN else "paper" if method in METHODS else "controls"
    return {
        "id": method if variant == MAIN else f"{method} {variant}",
        "name": label(method, variant),
        "colour": look.colour,
        "dashes": dashes,
        "group": group,
        "shown": variant == MAIN and method in HEADLINE,
    }


def _suite(scores: ArmScores, rows: pd.DataFrame, suite: str, arms: Sequence[tuple[str, str]]) -> dict[str, Any]:
    of_suite = stats.sampled(rows[rows["suite"] == suite])
    problems = of_suite.drop_duplicates("problem_id").sort_values("problem_id")
    families = sorted({str(name) for name in problems["subset"]})
    least = int(of_suite["n"].min())
    ks = sorted({2**i for i in range(least.bit_length()) if 2**i <= least} | {least})
    found = {}
    for number, (method, variant) in enumerate(arms):
        if scores.answers(method, suite, variant=variant) is not None:
            found[number] = _arm(scores, of_suite, suite, method, variant, ks)
    return {
        "id": suite,
        "name": SUITES[suite],
        "ks": ks,
        "problems": [str(name) for name in problems["problem_id"]],
        "families": families,
        "family": [families.index(str(name)) for name in problems["subset"]],
        "arms": found,
    }


def _arm(
    scores: ArmScores, of_suite: pd.DataFrame, suite: str, method: str, variant: str, ks: Sequence[int]
) -> dict[str, Any]:
    """Runs, counts and intervals of an arm on a suite."""
    chosen = of_suite[(of_suite["method"] == method) & (of_suite["variant"] == variant)]
    chosen = chosen.sort_values(["seed", "problem_id"], kind="stable")
    first = scores.of(method, suite, "pass", ks[0], variant)
    greedy = scores.get(method, suite, "greedy", variant=variant)
    styles = [name for name in STYLE_COLOURS if stats.has_styles(of_suite) and name != "other"]
    return {
        "seeds": list(first.seeds),
        "bases": list(first.bases),
        "n": encoded(chosen["n"].to_numpy()),
        "drawn": encoded(chosen["drawn"].to_numpy()),
        "correct": encoded(chosen["correct"].to_numpy()),
        "styles": [encoded(chosen[name].to_numpy()) for name in styles],
        "greedy": _percent(greedy.values_SP.mean(axis=1)) if greedy else [],
        "ends": {
            "greedy": _ends(interval([greedy]), 0, 100) if greedy else None,
            **_intervals(scores, suite, method, variant, ks),
        },
    }


def _intervals(
    scores: ArmScores, suite: str, method: str, variant: str, ks: Sequence[int]
) -> dict[str, list[list[float] | None]]:
    """The ends of the intervals of an arm's Pass@k, of its difference to the base, and of what it keeps and explores.

    An entry per k; None where there is no interval.
    """

    def of_each(ends: Callable[[int], list[float] | None]) -> list[list[float] | None]:
        return [ends(k) for k in ks]

    def arm(k: int) -> Any:
        return scores.of(method, suite, "pass", k, variant)

    found = {"pass": of_each(lambda k: _ends(interval([arm(k)]), 0, 100))}
    if method != BASE:
        found["minus"] = of_each(lambda k: _ends(interval([arm(k), scores.of(BASE, suite, "pass", k)], np.subtract)))
    splits = {k: keep_and_explore(scores, method, suite, k, variant) for k in ks if method != BASE or 2 * k <= ks[-1]}
    for name in ("keep", "explore"):
        found[name] = of_each(lambda k, name=name: _ends(getattr(splits[k], name)(), 0, 100) if k in splits else None)  # type: ignore[misc]
    return found


def _ends(got: Interval | None, low: float = -np.inf, high: float = np.inf) -> list[float] | None:
    """Low and high in per cent, cut at what is possible; None where they are not known."""
    if got is None or not np.isfinite([got.low, got.high]).all():
        return None
    return _percent(np.clip([got.low, got.high], low / 100, high / 100))


def _percent(values: np.ndarray) -> list[float]:
    return [round(100 * float(value), _DECIMALS) + 0.0 for value in values]


def encoded(counts: np.ndarray) -> int | str:
    """Whole numbers, not negative: one that all are; else as text, `DIGITS` of base 64.

    The first character is the number of digits that each of them has.

    >>> encoded(np.array([16, 16])), encoded(np.array([0, 32])), encoded(np.array([1, 256]))
    (16, '10w', '20140')
    """
    most = int(counts.max())
    if most == counts.min():
        return most
    width = 1
    while 64**width <= most:
        width += 1
    powers = 64 ** np.arange(width)[::-1]
    places = (counts[:, None] // powers) % 64
    return str(width) + "".join(np.array(list(DIGITS))[places].ravel().tolist())


def _answers(answers: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Problem -> prompt, gold, texts (style, verdict, text), and of each method's run [place of a text, times]."""
    found: dict[str, dict[str, Any]] = {}
    for problem, rows in answers.astype(object).groupby("problem_id", sort=False):
        texts = list(rows[["style", "verdict", "answer"]].drop_duplicates().itertuples(index=False, name=None))
        places = {text: place for place, (*_, text) in enumerate(texts)}
        of = {}
        for method, one in rows.groupby("method", sort=False):
            counted = [[places[text], int(times)] for text, times in zip(one["answer"], one["times"], strict=True)]
            of[method] = {"seed": int(one["seed"].iloc[0]), "answers": counted}
        found[problem] = {"prompt": rows["prompt"].iloc[0], "gold": rows["gold"].iloc[0], "texts": texts, "of": of}
    return found
