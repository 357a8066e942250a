"""The HTML report of a results folder, and its executed notebooks as HTML.

    report/index.html        claims, tables, figures, notebooks, machine; one page, figures by relative links
    report/notebooks/*.html  the executed notebooks

It computes nothing: each number on the page is read from `claims.json`, `tables/*.csv` or `manifest.json`. The same
folder gives the same bytes. No page has a script or needs a file from elsewhere: it opens from a disk, on a telephone
and on paper. Templates and style sheets are in `templates/`.
"""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import nbformat
from jinja2 import Environment, PackageLoader, StrictUndefined

from dphlib.analysis import paper, tables
from dphlib.analysis.claims import effect_text, joint_text, verdict_counts
from dphlib.figures.captions import CAPTIONS, TITLES
from dphlib.report.facts import command_text, machine_text, minutes, peak_text, read_claims, read_json
from dphlib.runtime.files import RunError, write_text

_TEMPLATES = Environment(
    loader=PackageLoader("dphlib.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters |= {"effect": effect_text, "joint": joint_text}


def build_report(run_root: Path) -> Path:
    """Writes `report/index.html` and `report/notebooks/*.html` of a results folder; returns the index.

    Needs `claims.json`, `manifest.json` and `tables/`; a figure or notebook that is not there is named as absent.
    Raises `RunError` naming what is missing.
    """
    run_root = Path(run_root)
    claims, manifest = read_claims(run_root), read_json(run_root / "manifest.json")
    ours = manifest.get("ours", "")
    drawn = [name for name in TITLES if (run_root / "figures" / f"{name}.svg").is_file()]
    page = _TEMPLATES.get_template("page.html.j2").render(
        citation=paper.CITATION,
        manifest=manifest,
        ours=ours,
        counts=verdict_counts(claims),
        claims=claims,
        tables=[_table(run_root, name, ours) for name in tables.TITLES],
        figures=[{"name": n, "title": TITLES[n], "caption": CAPTIONS[n]} for n in drawn],
        absent=[title for name, title in TITLES.items() if name not in drawn],
        notebooks=notebook_pages(run_root),
        minutes=minutes(manifest),
        command=command_text(manifest),
        machine=machine_text(manifest),
        peak=peak_text(manifest),
    )
    index = run_root / "report" / "index.html"
    write_text(index, page)
    return index


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
        titles[source.stem] = _title(notebook, source.stem)
        page = _TEMPLATES.get_template("notebook.html.j2").render(
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
