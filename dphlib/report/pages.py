"""The HTML report of a results folder, and its executed notebooks as HTML.

    report/index.html        claims, tables, figures, notebooks, machine; one page, figures by relative links
    report/explorer.html     the records by choice, see `explorer`
    report/notebooks/*.html  the executed notebooks

It computes nothing: each number on the page is read from `claims.json`, `tables/*.csv` or `manifest.json`. The same
folder gives the same bytes. No page needs a file from elsewhere, and none but the explorer has a script: it opens from
a disk, on a telephone and on paper. Templates and style sheets are in `templates/`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import unescape
from math import ceil, floor, log10
from pathlib import Path

import nbformat

from dphlib.analysis import paper, tables
from dphlib.analysis.claims import SYMBOLS, ClaimResult, effect_text, from_json, joint_text, verdict_counts
from dphlib.figures.captions import CAPTIONS, TITLES
from dphlib.report.explorer import build_explorer
from dphlib.report.facts import command_text, machine_text, minutes, peak_text, read_claims, read_json
from dphlib.report.rendering import TEMPLATES
from dphlib.runtime.files import RunError, write_text

STOPPED = "claims_stopped.json"
DECIDED = ("supported", "not supported")
TEMPLATES.filters |= {"effect": effect_text, "joint": joint_text}


def build_report(run_root: Path) -> Path:
    """Writes the pages of a results folder; returns the index.

    Needs `claims.json`, `manifest.json`, `records.parquet` and `tables/`; a figure or notebook that is not there is
    named as absent. Raises `RunError` naming what is missing.
    """
    run_root = Path(run_root)
    claims, manifest = read_claims(run_root), read_json(run_root / "manifest.json")
    ours, stopped = manifest.get("ours", ""), _at_stopping(run_root)
    headline = [one for one in claims if one.holds_jointly is not None]
    drawn = [name for name in TITLES if (run_root / "figures" / f"{name}.svg").is_file()]
    page = TEMPLATES.get_template("page.html.j2").render(
        citation=paper.CITATION,
        manifest=manifest,
        ours=ours,
        counts=verdict_counts(claims),
        claims=claims,
        findings=[one for one in headline if one.verdict in DECIDED],
        headline=len(headline),
        marks=SYMBOLS,
        stopped=stopped,
        axes=_axes(claims),
        tables=[_table(run_root, name, ours) for name in tables.TITLES if stopped or name != "table_points"],
        figures=[{"name": n, "title": TITLES[n], "caption": CAPTIONS[n]} for n in drawn],
        absent=[title for name, title in TITLES.items() if name not in drawn],
        notebooks=notebook_pages(run_root),
        minutes=minutes(manifest),
        command=command_text(manifest),
        machine=machine_text(manifest),
        peak=peak_text(manifest),
    )
    build_explorer(run_root)
    index = run_root / "report" / "index.html"
    write_text(index, page)
    return index


def _at_stopping(run_root: Path) -> dict[str, int]:
    """How many claims have each verdict at the stopping points; {} where no run has one."""
    if not (run_root / STOPPED).is_file():
        return {}
    return verdict_counts(from_json((run_root / STOPPED).read_text(encoding="utf-8")))


def _axes(claims: Sequence[ClaimResult]) -> dict[str, tuple[float, str]]:
    """Unit -> how far the one axis of its claims reaches to both sides, and that as a reader sees it."""
    axes = {}
    for unit in {claim.unit: None for claim in claims}:
        drawn = [claim for claim in claims if claim.unit == unit and claim.estimate is not None]
        ends = [end for claim in drawn for end in (claim.low, claim.high, claim.deciding_part.tolerance)]
        numbers = [*(end or 0.0 for end in ends), *(value for claim in drawn for _, value in claim.per_seed)]
        scale = 100 if unit == "share" else 1
        farthest = scale * max((abs(number) for number in numbers), default=0.0) or 1.0
        step = 10.0 ** floor(log10(farthest))
        limit = step * ceil(farthest / step)
        axes[unit] = (limit / scale, f"{limit:g}")
    return axes


def _table(run_root: Path, name: str, ours: str) -> dict[str, str]:
    path = run_root / "tables" / f"{name}.csv"
    if not path.is_file():
        raise RunError(f"{path} is not there; ./run_all.sh replot draws tables and figures again from the records")
    number = f"Table {name[-1]}. " if name[-1].isdigit() else ""
    return {
        "name": name,
        "title": number + tables.title(name, ours),
        "note": tables.note(name, ours),
        "html": tables.to_html(tables.read_csv(path)),
    }


# --- Notebooks ----------------------------------------------------------------------------------------


_OF_COLAB = {"badge", "bootstrap"}
"""Tags of the cells that are for Colab only, and so not on a page."""


def notebook_pages(run_root: Path) -> dict[str, str]:
    """Writes each executed notebook of `notebooks/` as a page into `report/notebooks/`; returns their titles by name.

    Code, outputs, pictures and formulas (as MathML) are in the page.
    """
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    sources = sorted(path for path in (run_root / "notebooks").glob("*.ipynb") if ".failed" not in path.name)
    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    light, dark = (HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("friendly", "github-dark"))
    light, dark = light.replace("background: #f0f0f0;", "background: none;"), dark.replace("background: #0d1117;", "")
    names, titles = [path.stem for path in sources], {}
    for source, before, after in zip(sources, ["", *names], [*names[1:], ""], strict=False):
        notebook = nbformat.read(source, as_version=4)
        notebook.cells = [cell for cell in notebook.cells if _OF_COLAB.isdisjoint(cell.metadata.get("tags", []))]
        titles[source.stem] = _title(notebook, source.stem)
        page = TEMPLATES.get_template("notebook.html.j2").render(
            title=titles[source.stem],
            stem=source.stem,
            highlighting=f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}",
            body=_one_deeper(_with_formulas(exporter.from_notebook_node(notebook)[0])),
            before=before,
            after=after,
        )
        write_text(run_root / "report" / "notebooks" / f"{source.stem}.html", page)
    return titles


def _title(notebook: nbformat.NotebookNode, stem: str) -> str:
    """A notebook's first heading; its file name where it has none."""
    for cell in notebook.cells:
        for line in cell.source.splitlines() if cell.cell_type == "markdown" else ():
            if line.startswith("# "):
                return line[2:].strip()
    return stem


def _one_deeper(page: str) -> str:
    """The page with its relative links as they are from `report/notebooks/`, and to the pages of other notebooks."""
    page = page.replace('href="../', 'href="../../')
    return re.sub(r'href="(\d\d_\w+)\.ipynb"', r'href="\1.html"', page)


_VERBATIM = re.compile(r"(<pre.*?</pre>|<code.*?</code>|<style.*?</style>)", re.DOTALL)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.DOTALL)


def _with_formulas(page: str) -> str:
    """The page with its TeX as MathML, which browsers draw by themselves; code and printed text stay as they are."""
    from latex2mathml.converter import convert

    def drawn(match: re.Match[str]) -> str:
        block, inline = match.groups()
        return convert(unescape(block or inline), display="block" if block else "inline")

    return "".join(part if place % 2 else _FORMULA.sub(drawn, part) for place, part in enumerate(_VERBATIM.split(page)))
