"""The HTML report of a results folder, and its executed notebooks as HTML; the parts of README are in `readme`.

    report/index.html        claims, tables, figures, notebooks, machine; one page, figures by relative links
    report/notebooks/*.html  the executed notebooks

It computes nothing: each number on the page is read from `claims.json`, `tables/*.csv` or `manifest.json`. The same
folder gives the same bytes. Order at the end of a run: `results.draw`, `claims.json`, `runs.write_run_manifest`,
`build_report`, and `runs.write_run_manifest` once more, so that the manifest lists the report too.
"""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import Environment

from dphlib.analysis import paper, tables
from dphlib.figures import claims as claims_view
from dphlib.figures import results as plots
from dphlib.figures import studies as study_plots
from dphlib.report.facts import command_text, effect_text, machine_text, minutes, peak_text, read_json, verdict_counts
from dphlib.report.page import CLASSES, CSS, MARKS, NOTEBOOK_CSS, NOTEBOOK_PAGE, PAGE, effect_drawing
from dphlib.runtime.files import RunError, write_text

_TEMPLATES = Environment(autoescape=True, trim_blocks=False, keep_trailing_newline=True)
_WHAT = (
    "What may be compared with the paper is direction and order, with the intervals given. The absolute numbers "
    "may not: a "
    "model of about half a million parameters on a controlled world stands here beside an 8B model on the real sets."
)
_FIGURES = {
    "fig1_method": "Figure 1, the method", "fig2_pass_at_k": "Figure 2, Pass@k against k",
    "fig2_pass_at_k_family": "Figure 2, Pass@k of the divergences of the rehearsal",
    "fig3_keep_explore": "Figure 3, keep and explore", "fig4_styles": "Figure 4, solution styles",
    "fig5_training": "Figure 5, training curves", "fig6_cost": "Figure 6, cost",
    "fig7_divergences": "Figure 7, generators",
    "fig8_pass_over_steps": "Figure 8, Pass@k over training", "fig9_base": "Figure 9, the base model and the partition",
    "fig10_claims": "Figure 10, every claim with its interval",
    "fig11_controls": "Figure 11, controls and equal strength", "fig12_eta": "Figure 12, weights of the divergences",
    "fig13_ablations": "Figure 13, settings one at a time", "fig14_hard": "Figure 14, the hard problems",
}  # fmt: skip
_CAPTIONS = {**plots.CAPTIONS, **study_plots.CAPTIONS, "fig10_claims": claims_view.CAPTION}


def build_report(run_root: Path) -> Path:
    """Writes `report/index.html` and `report/notebooks/*.html` of a results folder; returns the index.

    Needs `claims.json`, `manifest.json` and `tables/`; a figure or notebook that is not there is named as absent.
    Raises `RunError` naming what is missing.
    """
    run_root = Path(run_root)
    claims, manifest = read_json(run_root / "claims.json"), read_json(run_root / "manifest.json")
    taken = minutes(manifest)
    drawn = [name for name in _FIGURES if (run_root / "figures" / f"{name}.svg").is_file()]
    page = _TEMPLATES.from_string(PAGE).render(
        css=CSS,
        citation=paper.CITATION,
        what=_what(manifest),
        profile=manifest["profile"],
        counts=verdict_counts(claims),
        classes=CLASSES,
        marks=MARKS,
        claims=[_claim(claim) for claim in claims],
        tables=[_table(run_root, name, manifest.get("ours", "")) for name in tables.TITLES],
        figures=[{"name": n, "title": _FIGURES[n], "caption": _CAPTIONS[n]} for n in drawn],
        absent=[title for name, title in _FIGURES.items() if name not in drawn],
        notebooks=[_notebook(path, taken) for path in notebooks_html(run_root)],
        facts=_facts(manifest, taken),
    )
    index = run_root / "report" / "index.html"
    write_text(index, page)
    return index


def _claim(claim: dict[str, Any]) -> dict[str, Any]:
    parts = [{**part, "effect": effect_text(part)} for part in claim["parts"]]
    shown = next((p for p in parts if p["estimate"] is not None and p["estimate"] == claim["estimate"]), {})
    drawing = effect_drawing({**claim, "tolerance": shown.get("tolerance", 0.0)})
    return {**claim, "parts": parts, "effect": effect_text(claim), "drawing": drawing}


def _what(manifest: dict[str, Any]) -> str:
    """What may be compared with the paper."""
    if not (ours := manifest.get("ours")):
        return _WHAT
    return (
        f"Ours: {ours}. What may be compared with the paper is direction and order, with the intervals given; levels "
        "only where model, sets, tuning and lengths are the paper's."
    )


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


def _notebook(page: Path, taken: dict[str, float]) -> dict[str, str]:
    source = page.parents[2] / "notebooks" / f"{page.stem}.ipynb"
    title = _title(nbformat.read(source, as_version=4), page.stem)
    return {"stem": page.stem, "title": title, "minutes": f"{taken[page.stem]:.1f}" if page.stem in taken else "-"}


def _facts(manifest: dict[str, Any], taken: dict[str, float]) -> dict[str, str]:
    """What the manifest says of the run, for a reader."""
    facts = {"Command": command_text(manifest), "Machine": machine_text(manifest)}
    if taken:
        facts["Minutes"] = f"{sum(taken.values()):.0f}, all notebooks together"
    facts["Peak memory"] = f"{peak_text(manifest)}, of one process"
    if manifest.get("seeds") is not None:
        facts["Training seeds"] = ", ".join(map(str, manifest["seeds"]))
    facts["Versions"] = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    return facts


def _title(notebook: nbformat.NotebookNode, stem: str) -> str:
    """A notebook's first heading; its file name where it has none."""
    for cell in notebook.cells:
        for line in cell.source.splitlines() if cell.cell_type == "markdown" else ():
            if line.startswith("# "):
                return line[2:].strip()
    return stem


def notebooks_html(run_root: Path) -> list[Path]:
    """Writes each executed notebook of `notebooks/` as a page into `report/notebooks/`; returns the pages in order.

    Code, outputs, pictures and formulas (as MathML) are in the page; it needs no script and no network.
    """
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    sources = sorted(path for path in (Path(run_root) / "notebooks").glob("*.ipynb") if ".failed" not in path.name)
    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight").replace("background: #0d1117;", "")
    css = CSS + NOTEBOOK_CSS + HtmlFormatter(style="friendly").get_style_defs(".highlight").replace(
        "background: #f0f0f0;", "background: none;"
    ) + f"\n@media (prefers-color-scheme: dark) {{ {dark} }}\n"  # fmt: skip
    pages = []
    for position, source in enumerate(sources):
        notebook = nbformat.read(source, as_version=4)
        body, _ = exporter.from_notebook_node(notebook)
        names = [path.stem for path in sources]
        page = Path(run_root) / "report" / "notebooks" / f"{source.stem}.html"
        text = _TEMPLATES.from_string(NOTEBOOK_PAGE).render(
            title=_title(notebook, source.stem),
            stem=source.stem,
            css=css,
            body=_with_formulas(body),
            before=names[position - 1] if position else "",
            after=names[position + 1] if position + 1 < len(names) else "",
        )
        write_text(page, text)
        pages.append(page)
    return pages


_VERBATIM = re.compile(r"(<pre.*?</pre>|<code.*?</code>|<style.*?</style>)", re.DOTALL)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.DOTALL)


def _with_formulas(page: str) -> str:
    """The page with its TeX as MathML, which browsers draw by themselves; code and printed text stay as they are."""
    from latex2mathml.converter import convert

    def drawn(match: re.Match[str]) -> str:
        block, inline = match.groups()
        return convert(unescape(block or inline), display="block" if block else "inline")

    return "".join(part if place % 2 else _FORMULA.sub(drawn, part) for place, part in enumerate(_VERBATIM.split(page)))
