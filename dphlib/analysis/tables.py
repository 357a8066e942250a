"""The paper's tables from the records, ours beside the paper's numbers; and how a table is written.

Each function gives a tidy frame, one row per cell: `row` and `column` (what a reader sees), `method`, `variant`,
`ours`, `low`, `high` (per cent, 95 % interval, cut at 0 and 100), `seeds` (their number), `paper`
(its number as text, "" where it has none or it is not available), `status` (`run`, `not run`, or `paper only`). An arm
that is not in the records keeps its row, as `not run`. `wide` turns a tidy frame into what is read.
"""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dphlib import stats
from dphlib.analysis import paper
from dphlib.analysis.claims import SYMBOLS
from dphlib.analysis.labels import CLAIM_NAMES, NAMES, SUITES, VERDICT_COLOURS, label
from dphlib.intervals import Scores, interval
from dphlib.runtime.files import table_beside, write_text
from dphlib.scores import ArmScores
from dphlib.settings.methods import METHOD_CONFIGS, MethodConfig
from dphlib.settings.profiles import Profile
from dphlib.settings.variants import MAIN, RunConfig
from dphlib.world.sums import SUBSETS

COLUMNS = ["row", "column", "method", "variant", "ours", "low", "high", "seeds", "paper", "status"]
NOT_RUN = "not run"

_WORDS = table_beside(__file__)
TITLES = {name: words["title"] for name, words in _WORDS.items()}
"""Of the CPU world's tables; `title` has those of data sets."""
_INTERVAL = "In brackets: 95 % interval over runs and problems (closed form, Student's quantile)."
_WORLD = (
    "Compare direction and order, not levels: ours is a model of half a million parameters on a controlled world, the "
    "paper's an 8B model on the real sets."
)
_ON_DATA = (
    "Ours: {ours}, by this profile's settings. Compare direction and order; levels only where model, sets, tuning and "
    "lengths are the paper's."
)


def title(name: str, ours: str = "") -> str:
    """A table's title; `ours` is `Profile.described`.

    >>> title("table3", "a model trained on gsm8k_train")
    'Training on mathematics itself (per cent)'
    """
    return _words(name, "title", ours)


def note(name: str, ours: str = "") -> str:
    """What is written below a table; `ours` is `Profile.described`, "" for the CPU world."""
    comparable = _ON_DATA.format(ours=ours) if ours else _WORLD
    said = {"interval": _INTERVAL, "comparable": comparable, "ours": ours, **paper.PROVENANCE}
    return _words(name, "note", ours).format(**said)


def _words(name: str, kind: str, ours: str) -> str:
    words = _WORDS[name]
    return words.get(f"{kind}_on_data", words[kind]) if ours else words[kind]


def _cell(
    found: Sequence[Scores | None], row: str, column: str, method: str, variant: str, cited: str = ""
) -> dict[str, object]:
    """One cell: the mean of the scores' means with its interval; `not run` where some are absent."""
    cell = dict(zip(COLUMNS, (row, column, method, variant, np.nan, np.nan, np.nan, 0, cited, NOT_RUN), strict=True))
    scores = [one for one in found if one is not None]
    if not scores or len(scores) < len(found):
        return cell
    got = interval(scores, lambda *means: sum(means) / len(means))
    low, high = max(0.0, 100 * got.low), min(100.0, 100 * got.high)
    numbers = {"ours": 100 * got.estimate, "low": low, "high": high, "seeds": len(scores[0].seeds)}
    return {**cell, **numbers, "status": "run"}


def _paper_only(row: str, column: str, method: str, variant: str, cited: str) -> dict[str, object]:
    return {**_cell([], row, f"paper: {column}", method, variant, cited), "status": "paper only"}


def _frame(cells: Iterable[dict[str, object]]) -> pd.DataFrame:
    return pd.DataFrame(list(cells), columns=COLUMNS)


_METRICS: dict[str, tuple[stats.Metric, int]] = {
    "greedy": ("greedy", 1),
    "Pass@1": ("pass", 1),
    "Pass@8": ("pass", 8),
    "Pass@16": ("pass", 16),
}
_PAPER_SET = {"in_domain": "BIRD", "cross_domain": "Spider"}


def _cited(table: paper.PaperTable, row: str, column: str) -> str:
    """The paper's number as text, "" where it has no such column: it samples no Pass@1."""
    return table.text(row, column) if column in table.columns else ""


def table1(scores: ArmScores) -> pd.DataFrame:
    """Table 1: greedy, Pass@1, Pass@8, Pass@16 in domain and cross domain, beside the paper's Llama-3.1-8B-Instruct."""
    cells = []
    for method in paper.TABLE_1.rows:
        for suite, cited_set in _PAPER_SET.items():
            for name, measure in _METRICS.items():
                found = scores.get(method, suite, *measure)
                cited = _cited(paper.TABLE_1, method, f"{cited_set} {name}")
                cells.append(_cell([found], label(method), f"{SUITES[suite]} {name}", method, MAIN, cited))
    return _frame(cells)


def table2(scores: ArmScores) -> pd.DataFrame:
    """Table 2: Pass@8 of each kind of sums and their average; then the paper's five sets, which are others."""
    subsets = sorted(
        scores.subsets("out_of_domain") or SUBSETS,
        key=lambda name: (SUBSETS.index(name) if name in SUBSETS else len(SUBSETS), name),
    )
    cells = []
    for method in paper.TABLE_2.rows:
        row = label(method)
        found = [scores.get(method, "out_of_domain", "pass", 8, subset=subset) for subset in subsets]
        cells += [_cell([one], row, subset, method, MAIN) for subset, one in zip(subsets, found, strict=True)]
        cells.append(_cell(found, row, "average", method, MAIN, paper.TABLE_2.text(method, "average")))
        for column in paper.TABLE_2.columns[:-1]:
            cells.append(_paper_only(row, column, method, MAIN, paper.TABLE_2.text(method, column)))
    return _frame(cells)


def table3(scores: ArmScores) -> pd.DataFrame:
    """Table 3: trained on sums, evaluated on held-out sums; the paper's three uncertain numbers of two models."""
    cells = []
    for method in paper.TABLE_3.rows:
        variant = MAIN if method == "base" else "domain=sums"
        row = label(method, variant)
        for name in ("greedy", "Pass@1", "Pass@8"):
            found = scores.get(method, "out_of_domain", *_METRICS[name], variant)
            cells.append(_cell([found], row, f"sums {name}", method, variant))
        for name, table in (("Llama", paper.TABLE_3), ("Qwen", paper.TABLE_3_QWEN)):
            cells.append(_paper_only(row, name, method, variant, " | ".join(map(str, table.rows[method]))))
    return _frame(cells)


def table4(scores: ArmScores, k: int = 8, threshold: int = 6, other: int = 8) -> pd.DataFrame:
    """Table 4: two thresholds of the partition; `threshold` is the main runs', `other` the ablation's, of k."""
    cells = []
    for method in ("dph_f", "dph_js"):
        for value, variant in ((threshold, MAIN), (other, f"threshold={other}")):
            for name, measure in _METRICS.items():
                found = scores.get(method, "in_domain", *measure, variant)
                cells.append(_cell([found], f"{NAMES[method]}, {value} of {k}", f"in domain {name}", method, variant))
    return _frame(cells)


def table5(scores: ArmScores, main_eta: float = 0.8) -> pd.DataFrame:
    """Table 5: DPH-JS by its generator and by definition at three weights; `main_eta` is the main runs'."""
    cells = []
    weights = {main_eta / 20: "0.01", main_eta / 4: "0.05", main_eta: "0.2"}
    for eta, cited_eta in weights.items():
        for method, form in (("dph_js", "generator"), ("dph_js_definition", "definition")):
            variant = MAIN if eta == main_eta else f"eta={eta:g}"
            for suite, cited_set in _PAPER_SET.items():
                for name in ("greedy", "Pass@1", "Pass@16"):
                    found = scores.get(method, suite, *_METRICS[name], variant)
                    cited = _cited(paper.TABLE_5[method], cited_eta, f"{cited_set} {name}")
                    row = f"{form}, eta {eta:g} / {cited_eta}"
                    cells.append(_cell([found], row, f"{SUITES[suite]} {name}", method, variant, cited))
    return _frame(cells)


def table_points(final: ArmScores, stopped: ArmScores) -> pd.DataFrame:
    """Both reported points side by side: each measure at the runs' stopping points, then at the end of training."""
    measures = [("in_domain", name) for name in _METRICS] + [
        (suite, "Pass@8") for suite in SUITES if suite != "in_domain"
    ]
    cells = []
    for method in paper.TABLE_1.rows:
        for suite, name in measures:
            for point, scores in (("stopped", stopped), ("end", final)):
                found = scores.get(method, suite, *_METRICS[name])
                cells.append(_cell([found], label(method), f"{SUITES[suite]} {name}, {point}", method, MAIN))
    return _frame(cells)


def _divergence(method: MethodConfig) -> str:
    if method.rkl_coef:
        return "reverse KL, on-policy"
    if method.divergence is None:
        return "none"
    if method.alpha:
        return f"alpha, a = {method.alpha:g}"
    return method.generator.label + (" by definition" if method.divergence == "js_definition" else "")


def methods_table(profile: Profile) -> pd.DataFrame:
    """What sets the methods apart, as trained in this profile, with the authors' weights beside ours."""
    rows = []
    for name in METHOD_CONFIGS:
        method = profile.method_config(RunConfig(name, MAIN, 0))
        rows.append(
            {
                "Method": NAMES[name],
                "trains on": "all prompts" if method.explores == "all" else "D_exp, rehearses D_pef",
                "divergence": _divergence(method),
                "weight": f"{method.eta or method.rkl_coef:g}" if method.eta or method.rkl_coef else "0",
                "authors' weight": paper.ETA.get(name, "not available"),
                "clip": f"{method.clip_low:g} / {method.clip_high:g}",
                "dynamic sampling": "yes" if method.dynamic_sampling else "no",
                "online reference": "yes" if method.needs_reference else "no",
                "seeds": len(profile.seeds),
            }
        )
    return pd.DataFrame(rows)


def settings_table(*parts: Any, within: str = "") -> pd.DataFrame:
    """Every value of some settings, a row each: setting, of nested ones with the names above it, and value.

    Args:
        parts: dataclasses.
        within: what is written before each name.
    """
    rows: list[dict[str, str]] = []
    for name, value in ((one.name, getattr(part, one.name)) for part in parts for one in dataclasses.fields(part)):
        if dataclasses.is_dataclass(value):
            rows += settings_table(value, within=f"{within}{name}.").to_dict("records")
        else:
            rows.append({"setting": f"{within}{name}", "value": str(value)})
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------------------------------- writing


def _in_text(ours: str, interval: str, cited: str) -> str:
    return " / ".join(filter(None, (" ".join(filter(None, (ours, interval))), cited)))


def wide(table: pd.DataFrame, cell_text: Callable[[str, str, str], str] = _in_text) -> pd.DataFrame:
    """A tidy frame as it is read: one row per arm, its seeds, and in each cell `ours [low, high] / paper`.

    Args:
        cell_text: puts our number, its interval and the paper's number together, "" for what there is not.
    """
    if list(table.columns) != COLUMNS:
        return table.astype(str)
    rows: dict[str, dict[str, str]] = {}
    for cell in table.itertuples(index=False):
        row = rows.setdefault(cell.row, {"": cell.row, "seeds": "0"})
        cited = "" if pd.isna(cell.paper) else str(cell.paper)
        if cell.status == "run":
            row[cell.column] = cell_text(f"{cell.ours:.1f}", f"[{cell.low:.1f}, {cell.high:.1f}]", cited)
            row["seeds"] = "-" if cell.method == "base" else str(cell.seeds)
        elif cell.status == NOT_RUN:
            row[cell.column] = cell_text(NOT_RUN, "", cited)
        else:
            row[cell.column] = cell_text("", "", cited or "not available")
    return pd.DataFrame(list(rows.values())).fillna("")


def to_csv(table: pd.DataFrame, path: Path) -> Path:
    """Writes a table with four decimals and `\\n` line ends: the same frame gives the same bytes. Returns the path."""
    write_text(Path(path), table.to_csv(index=False, float_format="%.4f", lineterminator="\n"))
    return Path(path)


def read_csv(path: Path) -> pd.DataFrame:
    """A table that `to_csv` wrote; the paper's numbers, and settings, stay text, as they are printed there."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if list(table.columns) != COLUMNS:
        return table
    numbers = {name: pd.to_numeric(table[name]) for name in ("ours", "low", "high", "seeds")}
    return table.assign(**numbers)


def to_markdown(table: pd.DataFrame | str, right: Iterable[str] = ()) -> str:
    """A table for a Markdown page; tidy frames are made wide first, a sentence in a table's place stays one.

    Args:
        right: columns that are aligned to the right.
    """
    if isinstance(table, str):
        return table
    shown, right = wide(table), set(right)
    rules = ["---:" if name in right else "---" for name in shown.columns]
    lines = [list(shown.columns), rules, *shown.to_numpy().tolist()]
    return "".join(f"| {' | '.join(map(_in_markdown, line))} |\n" for line in lines)


def folded(summary: str, table: pd.DataFrame | str) -> str:
    """`to_markdown`, folded away under a line until a reader opens it."""
    return f"<details><summary>{html.escape(summary, quote=False)}</summary>\n\n{to_markdown(table)}\n\n</details>"


_MARKS = {ord(mark): f"&#{ord(mark)};" for mark in "`*_$[]"}
"""What Markdown would read as marks even inside of HTML's code."""


def code(text: str) -> str:
    """A model's answer as code inside a cell, whatever marks it holds.

    >>> code("SELECT a < b")
    '<code>SELECT a &lt; b</code>'
    """
    return f"<code>{html.escape(text.strip(), quote=False).translate(_MARKS)}</code>"


def _in_markdown(value: object) -> str:
    return str(value).replace("|", "&#124;").replace("\n", "<br>")


def to_html(table: pd.DataFrame) -> str:
    """A table for an HTML page: interval and the paper's number in elements of their own (`ci`, `cited`)."""
    tidy = list(table.columns) == COLUMNS
    shown = wide(table, _in_html)
    escaped = shown.columns[:1] if tidy else shown.columns
    shown = shown.assign(**{name: shown[name].map(html.escape) for name in escaped})
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in shown)
    rows = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{value}</td>" for value in rest)}</tr>\n'
        for first, *rest in shown.to_numpy().tolist()
    )
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n"


def _in_html(ours: str, interval: str, cited: str) -> str:
    if not ours:
        return f'<span class="cited">{html.escape(cited)}</span>'
    shown = f'<span class="not-run">{ours}</span>' if ours == NOT_RUN else f"<b>{ours}</b>"
    shown += f'<span class="ci">{interval}</span>' if interval else ""
    return shown + (f'<span class="cited">paper {html.escape(cited)}</span>' if cited else "")


# ---------------------------------------------------------------------------------------------- in a notebook

_SUFFIXES = {"nats": " (nats)", "s": " (s)", "gib": " (GiB)"}
_UNITS = dict.fromkeys(("keep", "explore", "truncated", *SUITES.values()), " (%)")
_REFUSED = ("no_answer", "invalid", "forbidden", "timeout", "too_large")
_SAID: dict[str, tuple[str, str]] = {word: (SYMBOLS[word], VERDICT_COLOURS[word]) for word in SYMBOLS}
_SAID |= dict.fromkeys(("correct", "yes"), _SAID["supported"]) | dict.fromkeys(("wrong", "no"), _SAID["not supported"])
_SAID |= dict.fromkeys(_REFUSED, _SAID["not testable"]) | {"infra_error": _SAID["not run"]}
_VERDICT = re.compile(rf"(?:[{''.join(SYMBOLS.values())}] )?({'|'.join(sorted(_SAID, key=len, reverse=True))})\b")
_VERDICT_COLUMNS = ("verdict", "expected", "outcome", "agrees", "at the end", "at the stopping points")
_IDENTIFIER = re.compile(r"[a-z0-9_]+")
_NUMBER = re.compile(r"[-+]?\d[\d.,]*(e[-+]?\d+)?|-|nan|-?inf")


class Shown:
    """Markdown that a notebook shows where it is displayed, or the last expression of a cell."""

    def __init__(self, text: str) -> None:
        self._text = text

    def _repr_markdown_(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return self._text


def shown(table: pd.DataFrame | str, digits: int = 1, *, fold: str = "", code_in: Sequence[str] = ()) -> Shown:
    """A table as every notebook shows it: `readable`, numbers to the right, verdicts as `verdict`.

    Args:
        table: a frame, tidy or not, or a sentence in its place.
        digits: decimals of the numbers.
        fold: a line under which it is folded away, "" to show it.
        code_in: columns that hold code or a model's answers.

    >>> print(shown(pd.DataFrame({"n": [1.25], "sql": ["a < b"], "holds": [True]}), 2, code_in=["sql"]))
    | n | sql | holds |
    | ---: | --- | --- |
    | 1.25 | <code>a &lt; b</code> | <span style="color:#0070BA">✔&nbsp;yes</span> |
    <BLANKLINE>
    """
    if not isinstance(table, str) and list(table.columns) == COLUMNS:
        table = to_markdown(wide(table, _on_lines))
    if isinstance(table, str):
        return Shown(folded(fold, table) if fold else table)
    truths = [name for name in table if pd.api.types.is_bool_dtype(table[name])]
    frame = table.assign(**{name: table[name].map({True: "yes", False: "no"}) for name in truths})
    frame = readable(frame, digits)
    for old, new in zip((n for n in table if not str(n).endswith(("_low", "_high"))), frame.columns, strict=True):
        if old in code_in:
            frame[new] = frame[new].map(code)
        elif old in truths or old in _VERDICT_COLUMNS:
            frame[new] = frame[new].map(verdict)
    text = to_markdown(frame, [name for name in frame if all(map(_NUMBER.fullmatch, frame[name]))])
    return Shown(folded(fold, text) if fold else text)


def compared(table: pd.DataFrame) -> Shown:
    """The numbers of `results.beside_reference`; beside the reference run's they are folded under how many agree."""
    table = table.assign(number=table["number"].map(quantity))
    return shown(table, fold=_agreement(table) if "reference run" in table else "")


_SPACED = {name.replace("_", " "): NAMES[name] for name in sorted(NAMES, key=len, reverse=True)}
_METHOD = re.compile(rf"\b({'|'.join(map(re.escape, _SPACED))})\b")


def quantity(name: str) -> str:
    """The name of a notebook's number as it is read.

    >>> quantity("pass_16_dph_js_definition_eta=0.2"), quantity("stopped_pass_16_falls_rkl")
    ('pass 16 DPH-JS by definition eta 0.2', 'RKL: Pass@16 falls (stopped)')
    """
    kind, _, claim = name.partition("_")
    if kind in ("verdict", "stopped") and claim in CLAIM_NAMES:
        return CLAIM_NAMES[claim] + (" (stopped)" if kind == "stopped" else "")
    return _METHOD.sub(lambda found: _SPACED[found[1]], re.sub("[_=]", " ", name))


def _agreement(table: pd.DataFrame) -> str:
    """How many numbers of a run are the reference run's, and which are not."""
    if "agrees" not in table:
        return "This run's numbers beside the reference run's"
    differ = table.loc[table["agrees"] != "yes", "number"].tolist()
    said = f"{len(table) - len(differ)} of {len(table)} numbers agree with the reference run"
    return said + (f"; not: {', '.join(differ)}" if differ else "")


def _on_lines(ours: str, interval: str, cited: str) -> str:
    """Our number, then its interval, then the paper's, a line each."""
    number = f"**{ours}**" if interval else ours
    return "<br>".join(filter(None, (number, interval, f"paper {cited}" if cited else "")))


def verdict(text: str) -> str:
    """A verdict, or the outcome of an answer, with its shape and in its colour; another text as it is.

    >>> verdict("wrong"), verdict("a dash")
    ('<span style="color:#B54200">✘&nbsp;wrong</span>', 'a dash')
    """
    found = _VERDICT.match(text)
    if not found:
        return text
    symbol, colour = _SAID[found[1]]
    return f'<span style="color:{colour}">{symbol}&nbsp;{found[1].replace("_", " ")}</span>{text[found.end() :]}'


def readable(frame: pd.DataFrame, digits: int = 1) -> pd.DataFrame:
    """A frame as it is read: `x`, `x_low`, `x_high` become one text, others are rounded; absent, infinite: a dash.

    >>> readable(pd.DataFrame({"keep": [81.26], "keep_low": [79.0], "keep_high": [83.5], "seeds": [3]})).to_dict("list")
    {'keep (%)': ['81.3 [79.0, 83.5]'], 'seeds': ['3']}
    """
    out = {}
    for name in (n for n in frame.columns if not str(n).endswith(("_low", "_high"))):
        texts = [_text(value, digits) for value in frame[name]]
        if f"{name}_low" in frame:
            ends = zip(frame[f"{name}_low"], frame[f"{name}_high"], strict=True)
            with_ends = zip(texts, ends, strict=True)
            texts = [t if t == "-" else f"{t} [{_text(a, digits)}, {_text(b, digits)}]" for t, (a, b) in with_ends]
        head, _, tail = str(name).rpartition("_")
        title = head if tail in _SUFFIXES else str(name)
        title = re.sub(r"\bkl\b", "KL", title.replace("_", " ")) if _IDENTIFIER.fullmatch(title) else title
        out[title + (_UNITS.get(name) or _SUFFIXES.get(tail, ""))] = texts
    return pd.DataFrame(out)


def _text(value: object, digits: int) -> str:
    if isinstance(value, float | np.floating):
        return "-" if not np.isfinite(value) else f"{round(float(value), digits) + 0.0:.{digits}f}"
    return str(value)
