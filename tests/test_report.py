"""The report: numbers from the folder's files, links that lead somewhere, equal bytes."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from browser import Browser, needs_browser
from synthetic import make_run

from dphlib.analysis.claims import SYMBOLS, effect_text
from dphlib.report import pages as report
from dphlib.report.facts import read_claims
from dphlib.runtime.files import RunError


@pytest.fixture(scope="module")
def run_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("report") / "run", methods=("base", "grpo", "rkl", "dph_f", "dph_js"))
    report.build_report(folder)
    return folder


@pytest.fixture
def copy(run_root, tmp_path) -> Path:
    return Path(shutil.copytree(run_root, tmp_path / "run"))


class Page(HTMLParser):
    """Links, pictures, ids and text of a page; checks that its elements close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links, self.ids, self.open, self.text = [], set(), [], ""
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.links += [values[key] for key in ("href", "src") if key in values]
        self.ids |= {values["id"]} if "id" in values else set()
        if tag not in ("meta", "img", "br", "path", "circle", "link", "hr", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open and tag == self.open[-1]:
            self.open.pop()
        else:
            assert tag in ("path", "circle"), f"</{tag}> closes {self.open[-1:]}"

    def handle_data(self, data):
        self.text += data if "style" not in self.open[-1:] else ""


def page_of(run_root: Path) -> Page:
    return Page((run_root / "report" / "index.html").read_text())


def test_every_link_leads_to_a_file_or_a_place_on_the_page(run_root):
    page = page_of(run_root)
    assert len(page.links) > 15
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids, link
        else:
            assert not link.startswith(("http", "/")) and (run_root / "report" / link).resolve().is_file(), link


def test_claims_stand_with_verdict_and_interval_as_in_the_file(run_root):
    page = page_of(run_root)
    claims = read_claims(run_root)
    for claim in claims:
        assert claim.text in page.text and claim.id in page.ids
        assert effect_text(claim) in page.text
    assert {"supported", "not run"} <= {claim.verdict for claim in claims}


def test_tables_show_ours_the_paper_and_what_was_not_run(run_root):
    text = re.sub(r"\s+", " ", page_of(run_root).text)
    line = (run_root / "tables" / "table1.csv").read_text().splitlines()[1].split(",")
    assert f"{float(line[4]):.1f}[{float(line[5]):.1f}, {float(line[6]):.1f}]paper {line[8]}" in text
    assert "not runpaper 67.2" in text  # DAPO
    assert "Compare direction and order, not levels" in text


def test_the_findings_come_first_and_each_verdict_has_its_shape(run_root):
    text = re.sub(r"\s+", " ", page_of(run_root).text)
    assert text.index("Findings") < text.index("All claims:") < text.index("Compare direction and order")
    for claim in read_claims(run_root):
        assert f"{SYMBOLS[claim.verdict]} {claim.verdict}" in text


def test_a_figure_without_data_is_named_as_absent(copy):
    assert "Figure 6, cost" not in page_of(copy).text.split("Not drawn")[1]
    (copy / "figures" / "fig6_cost.svg").unlink()
    assert "Figure 6, cost" in page_of(report.build_report(copy).parents[1]).text.split("Not drawn")[1]


def test_the_run_is_described_by_its_manifest(run_root):
    text = page_of(run_root).text
    for fact in (
        "a processor, 2 cores, 7.8 GiB memory, no GPU used, Linux",
        "1.2 GiB",
        "torch 2.13.0",
        "0, 1, 2",
        "31, all",
    ):
        assert fact in text


def test_the_page_asks_nothing_of_the_network(run_root):
    text = (run_root / "report" / "index.html").read_text()
    assert "http" not in re.sub(r"http://www.w3.org\S*", "", text) and "<script" not in text


def test_notebooks_become_pages_with_code_and_output(run_root):
    (page,) = (run_root / "report/notebooks").iterdir()
    assert page.name == "01_divergences.html"
    text = page.read_text()
    Page(text)
    assert "DataFrame" in text and "<td>8</td>" in text and "<math" in text
    assert "<script" not in text and "../index.html" in text
    assert "01 Divergences" in page_of(run_root).text


def test_links_of_a_notebook_lead_from_its_page_to_the_same_places(copy):
    path = copy / "notebooks/01_divergences.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source += "\n\n[report](../report/index.html) [02](02_base_and_data.ipynb)"
    notebook.cells.append(nbformat.v4.new_markdown_cell("In Colab: upload it", metadata={"tags": ["badge"]}))
    nbformat.write(notebook, path)
    report.notebook_pages(copy)
    text = (copy / "report/notebooks/01_divergences.html").read_text()
    assert 'href="../../report/index.html"' in text and (copy / "report/notebooks/../../report/index.html").is_file()
    assert 'href="02_base_and_data.html"' in text and "In Colab" not in text


def test_the_same_folder_gives_the_same_bytes(copy):
    before = {p: p.read_bytes() for p in (copy / "report").rglob("*.html")}
    for path in before:
        path.unlink()
    report.build_report(copy)
    assert {p: p.read_bytes() for p in (copy / "report").rglob("*.html")} == before


def test_what_is_written_in_a_claim_cannot_become_html(copy):
    claims = json.loads((copy / "claims.json").read_text())
    claims[0]["text"] = "<script>alert(1)</script>"
    (copy / "claims.json").write_text(json.dumps(claims))
    assert "<script>" not in report.build_report(copy).read_text()


@pytest.mark.parametrize("missing", ["claims.json", "manifest.json", "tables/table2.csv"])
def test_a_missing_file_is_named_with_the_way_out(copy, missing):
    (copy / missing).unlink()
    with pytest.raises(RunError, match=rf"{missing} is not there.*run_all\.sh"):
        report.build_report(copy)


@pytest.mark.parametrize(("estimate", "side"), [(0.1, "right"), (-0.1, "left"), (None, "absent")])
def test_a_positive_effect_is_drawn_right_of_the_line(copy, estimate, side):
    claims = json.loads((copy / "claims.json").read_text())
    numbers = {"estimate": None, "low": None, "high": None}
    if estimate is not None:
        numbers = {"estimate": estimate, "low": estimate - 0.05, "high": estimate + 0.05}
    claims[0] |= {**numbers, "per_seed": [[0, estimate]] if estimate else []}
    (copy / "claims.json").write_text(json.dumps(claims[:1]))
    drawn = re.findall(r'<circle cx="([\d.]+)"', report.build_report(copy).read_text())
    assert ["right" if float(x) > 125 else "left" for x in drawn] == ([side] if estimate else [])


def test_formulas_are_drawn_without_a_script_and_code_keeps_its_dollars():
    page = "<p>since $u &lt; 1$ and</p>$$f(u) = \\log u$$<pre>cost $5 and $6</pre><code>$x$</code>"
    drawn = report._with_formulas(page)
    assert drawn.count("<math") == 2 and 'display="block"' in drawn and "<mo>&#x0003C;</mo>" in drawn
    assert "<pre>cost $5 and $6</pre><code>$x$</code>" in drawn


BEYOND = """
const beyond = one => {
    const [box, place] = [one.getBoundingClientRect(), one.parentElement.getBoundingClientRect()]
    return box.width > 0 && (box.left < place.left - 0.5 || box.right > place.right + 0.5)
}
return [...document.querySelectorAll(".chip, .tile, svg, img")].filter(beyond).map(one => one.outerHTML)
"""
"""What reaches out of the element that it is in."""


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize(("width", "media"), [(1280, "screen"), (390, "screen"), (718, "print")])
def test_it_fits_on_a_screen_a_telephone_and_paper(run_root, tmp_path, width, media):
    page = Browser(tmp_path, run_root / "report" / "index.html", width)
    try:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media})
        page.check()
        assert page.script(BEYOND) == []
        assert "`" not in page.script("return document.body.innerText")
        wide = page.script(
            "return [...document.querySelectorAll('.scroll')].filter(x => x.scrollWidth > x.clientWidth)"
        )
        assert all(one.get_attribute("tabindex") == "0" for one in wide) and (wide or width != 390)
    finally:
        page.driver.quit()


def test_claims_of_one_unit_are_drawn_on_one_axis(copy):
    claims = json.loads((copy / "claims.json").read_text())[:2]
    for claim, estimate in zip(claims, (0.2, 0.1), strict=True):
        claim |= {
            "unit": "share",
            "estimate": estimate,
            "low": estimate - 0.02,
            "high": estimate + 0.34,
            "per_seed": [],
        }
        for part in claim["parts"]:
            part["tolerance"] = 0.0
    (copy / "claims.json").write_text(json.dumps(claims))
    text = report.build_report(copy).read_text()
    first, second = (float(x) - 125 for x in re.findall(r'<circle cx="([\d.]+)"', text))
    assert (
        first == pytest.approx(2 * second, abs=0.11) and text.count(">60</text>") == 2
    )  # the farthest end is 54 points
