"""The explorer: its data are the records' counts and the library's intervals, and in a browser it shows them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import Browser, needs_browser
from synthetic import make_records, make_run

from dphlib import stats
from dphlib.intervals import interval
from dphlib.report.explorer import DIGITS, PAGE, build_explorer, encoded, explorer_data
from dphlib.runtime.files import RunError
from dphlib.runtime.places import REFERENCE, ROOT
from dphlib.scores import ArmScores, keep_and_explore

METHODS, SEEDS, BASES = ("base", "grpo", "dph_f", "dph_js"), (0, 1, 2, 3), (0, 1, 2)
CORRECT = ("correct", "Directly : SELECT 1 < 2")
WRONG = ("no_answer", "</script><script>document.title = 'broken'</script>")


def make_answers() -> pd.DataFrame:
    """Answers of two models to one problem of a suite."""
    rows = []
    given = (("in_domain", "base", (5, 3)), ("in_domain", "grpo", (8,)), ("cross_domain", "grpo", (2,)))
    for suite, method, times in given:
        asked = {"suite": suite, "problem_id": f"{suite}-003", "prompt": "question & more", "gold": "SELECT 1 < 2"}
        for style, count, (verdict, text) in zip(("direct", "other"), times, (CORRECT, WRONG), strict=False):
            row = {"method": method, "seed": 0, "style": style, "times": count, "verdict": verdict, "answer": text}
            rows.append(asked | row)
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def records() -> pd.DataFrame:
    """Four runs of each method from three bases, so that runs and bases have different means."""
    return make_records(METHODS, SEEDS, steps=True, bases=BASES)


@pytest.fixture(scope="module")
def data(records) -> dict:
    return explorer_data(records, make_answers(), "cpu")


@pytest.fixture(scope="module")
def run_root(tmp_path_factory, records) -> Path:
    folder = tmp_path_factory.mktemp("explorer")
    (folder / "manifest.json").write_text('{"profile": "cpu"}')
    records.to_parquet(folder / "records.parquet", index=False)
    make_answers().to_parquet(folder / "answers.parquet", index=False)
    build_explorer(folder)
    return folder


# ---------------------------------------------------------------------------------------------- data


def decoded(code: int | str, count: int) -> list[int]:
    """As the page's script reads it."""
    if isinstance(code, int):
        return [code] * count
    width = int(code[0])
    places = [DIGITS.index(letter) for letter in code[1:]]
    return [sum(64 ** (width - 1 - j) * places[i * width + j] for j in range(width)) for i in range(count)]


@pytest.mark.parametrize("most", [1, 63, 64, 5000])
def test_counts_are_read_as_they_were(most):
    counts = np.random.default_rng(most).integers(0, most + 1, size=50)
    assert decoded(encoded(counts), 50) == counts.tolist()


def test_counts_of_final_models_stand_by_run_and_problem(records, data):
    (suite,) = (one for one in data["suites"] if one["id"] == "cross_domain")
    number = [one["id"] for one in data["methods"]].index("dph_js")
    arm, rows = suite["arms"][number], stats.sampled(stats.final(records))
    rows = rows[(rows["suite"] == "cross_domain") & (rows["method"] == "dph_js") & (rows["variant"] == "main")]
    for name, code in (("correct", arm["correct"]), ("direct", arm["styles"][0])):
        table = rows.pivot(index="seed", columns="problem_id", values=name).loc[list(SEEDS), suite["problems"]]
        assert decoded(code, table.size) == table.to_numpy().ravel().tolist()
    assert data["bases"] == {0: 0, 1: 1, 2: 2, 3: 0}
    assert arm["bases"] == [0, 1, 2, 0] and suite["ks"] == [1, 2, 4, 8, 16]


def test_intervals_are_the_librarys(records, data):
    scores = ArmScores.final(records)
    suite, names = data["suites"][0], [one["id"] for one in data["methods"]]
    ends = suite["arms"][names.index("grpo")]["ends"]
    at = suite["ks"].index(8)
    grpo, base = (scores.of(name, "in_domain", "pass", 8) for name in ("grpo", "base"))
    split = keep_and_explore(scores, "grpo", "in_domain", 8)
    wanted = {"pass": interval([grpo]), "minus": interval([grpo, base], np.subtract)}
    wanted |= {"keep": split.keep(), "explore": split.explore()}
    for name, got in wanted.items():
        cut = (-np.inf, np.inf) if name == "minus" else (0.0, 100.0)
        assert ends[name][at] == pytest.approx(np.clip([100 * got.low, 100 * got.high], *cut), abs=6e-4)


def test_arms_with_problems_of_their_own_are_left_out_and_the_papers_come_first(records):
    other = records[records["method"] == "grpo"].assign(variant="hidden=0.2", suite="in_domain")
    shown = explorer_data(pd.concat([records, other]), None, "cpu")
    names = [one["id"] for one in shown["methods"]]
    assert names[:4] == list(METHODS) and "dph_js threshold=8" in names and "grpo hidden=0.2" not in names
    assert shown["answers"] == {}


def test_records_without_styles_give_a_page_without(records):
    plain = explorer_data(records.assign(**dict.fromkeys(stats.STYLES, 0), other=0), None, "gpu24")
    assert plain["styles"] == [] and plain["suites"][0]["arms"][0]["styles"] == []


def test_equal_texts_of_a_problem_stand_once(data):
    one = data["answers"]["in_domain-003"]
    assert [text for *_, text in one["texts"]] == [CORRECT[1], WRONG[1]]
    assert one["of"]["base"]["answers"] == [[0, 5], [1, 3]] and one["of"]["grpo"]["answers"] == [[0, 8]]


def test_the_page_is_one_file_and_no_answer_can_leave_its_place_in_it(run_root):
    text = (run_root / "report" / PAGE).read_text()
    assert text.count("</script>") == text.count("<script") == 2
    assert not re.findall(r'(?:src|href)="(?!index\.html|#)', text) and "http" not in text.replace("http-equiv", "")


def test_the_same_files_give_the_same_bytes_without_torch(run_root, tmp_path):
    program = f"""
import sys
sys.modules["torch"] = None
from pathlib import Path
from dphlib.report.explorer import build_explorer
build_explorer(Path({str(run_root)!r}), Path({str(tmp_path)!r}))
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    assert (tmp_path / "report" / PAGE).read_bytes() == (run_root / "report" / PAGE).read_bytes()


def test_a_folder_without_records_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "manifest.json").write_text('{"profile": "cpu"}')
    with pytest.raises(RunError, match=r"records\.parquet is not there; \./run_all\.sh cpu writes it"):
        build_explorer(tmp_path)


def test_the_report_leads_to_it(tmp_path):
    from dphlib.report.pages import build_report

    index = build_report(make_run(tmp_path / "run", methods=METHODS))
    assert f'href="{PAGE}"' in index.read_text() and (index.parent / PAGE).is_file()


@pytest.mark.slow
def test_the_committed_page_is_that_of_the_committed_records_and_600_runs_fit_in_3_mb(tmp_path):
    page = build_explorer(REFERENCE, tmp_path).read_bytes()
    assert page == (REFERENCE / "report" / PAGE).read_bytes(), "made anew by: python -m tools.reference --anew"
    suites = json.loads(re.search(rb'id="data">(.*?)</script>', page, re.DOTALL)[1])["suites"]
    runs = {(number, seed) for suite in suites for number, arm in suite["arms"].items() for seed in arm["seeds"]}
    grows = len(json.dumps(suites, separators=(",", ":"))) / len(runs)
    assert len(page) + (600 - len(runs)) * grows < 3e6


# ---------------------------------------------------------------------------------------------- in a browser


class Explorer(Browser):
    """What a reader does on the page and reads there."""

    def choose(self, name: str, text: str) -> None:
        from selenium.webdriver.support.select import Select

        Select(self.driver.find_element("id", name)).select_by_visible_text(text)

    def tick(self, within: str, wanted: set[int | str], names: list[str] | None = None) -> None:
        """Leaves exactly the wanted boxes ticked; a folded list is opened first, as a reader does."""
        place = self.driver.find_element("css selector", f"details:has(#{within})")
        if not place.get_attribute("open"):
            place.find_element("css selector", "summary").click()
        for box in self.all(f"#{within} input"):
            value = int(box.get_attribute("value"))
            if box.is_selected() != ((names[value] if names else value) in wanted) and box.is_enabled():
                box.click()

    def row(self, table: str, method: str) -> list[str]:
        """The cells of a method's row as they are read."""
        return self.script(
            "return [...document.querySelectorAll(arguments[0])].map(cell => cell.innerText.trim())",
            f'#{table} tr[data-method="{method}"] td',
        )

    def dots(self, table: str, method: str) -> int:
        """Small dots, one a run, of a method's first drawing."""
        return len(self.all(f'#{table} tr[data-method="{method}"] td.strip:nth-of-type(2) circle')) - 1

    def check(self) -> None:
        super().check()
        assert self.script("return performance.getEntriesByType('resource').length") == 0


@pytest.fixture(scope="module", params=[1280, 390], ids=["desktop", "telephone"])
def browser(request, run_root, tmp_path_factory) -> Iterator[Explorer]:
    opened = Explorer(tmp_path_factory.mktemp("profile"), run_root / "report" / PAGE, request.param)
    yield opened
    opened.driver.quit()


@pytest.fixture(autouse=True)
def anew(request) -> None:
    """Each test begins with the page as it opens."""
    if "browser" in request.fixturenames:
        request.getfixturevalue("browser").driver.refresh()


def by_bases(records: pd.DataFrame, method: str, suite: str, k: int, seeds: tuple[int, ...] = SEEDS) -> float:
    """Mean Pass@k in per cent by pandas alone: over problems, a base's runs, bases."""
    rows = records[(records["variant"] == "main") & (records["temperature"] > 0) & (records["suite"] == suite)]
    rows = rows[(rows["method"] == method) & (rows["step"] == rows.loc[rows["method"] == method, "step"].max())]
    wanted = {seed % 3 for seed in seeds} if method == "base" else set(seeds)
    rows = rows[rows["seed"].isin(wanted)]
    rows = rows.assign(value=stats.pass_at_k(rows["n"], rows["correct"], k), base=rows["seed"] % 3)
    return 100 * rows.groupby(["base", "seed"])["value"].mean().groupby("base").mean().mean()


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize(
    ("suite", "shown", "k"), [("in_domain", "in domain", 8), ("out_of_domain", "out of domain", 4)]
)
def test_pass_at_k_and_its_interval_are_shown_as_computed(browser, records, suite, shown, k):
    browser.choose("suite", shown)
    browser.choose("k", f"k = {k}")
    scores = ArmScores.final(records)
    for method in METHODS:
        got = interval([scores.of(method, suite, "pass", k)])
        value, ends = browser.row("pass-table", method)[0].split("\n")
        assert float(value) == pytest.approx(by_bases(records, method, suite, k), abs=0.051)
        wanted = np.clip([100 * got.low, 100 * got.high], 0, 100)
        assert [float(end) for end in ends.strip("[]").split(",")] == pytest.approx(wanted, abs=0.051)
        assert browser.dots("pass-table", method) == (3 if method == "base" else 4)
    assert len(browser.all("#curves svg circle")) == len(METHODS) * len(browser.all("#k option"))
    browser.check()


@pytest.mark.slow
@needs_browser
def test_a_part_of_the_runs_has_their_mean_and_no_interval(browser, records):
    browser.tick("seeds", {0, 3, 1})
    for method in METHODS:
        (value,) = browser.row("pass-table", method)[0].split("\n")
        assert float(value) == pytest.approx(by_bases(records, method, "in_domain", 8, (0, 1, 3)), abs=0.051)
    assert browser.dots("pass-table", "grpo") == 3 and browser.dots("pass-table", "base") == 2
    assert browser.row("pass-table", "grpo")[-1] == "3 of 4"
    browser.driver.find_element("id", "none").click()
    assert browser.row("pass-table", "grpo")[0] == "-"
    browser.driver.find_element("id", "all").click()
    assert "[" in browser.row("pass-table", "grpo")[0]
    browser.check()


@pytest.mark.slow
@needs_browser
def test_what_is_kept_and_newly_solved_is_the_librarys(browser, records):
    scores = ArmScores.final(records)
    browser.choose("k", "k = 4")
    for method in METHODS:
        split = keep_and_explore(scores, method, "in_domain", 4)
        keep, _, explore, _, *problems = browser.row("kept-table", method)
        for cell, got in ((keep, split.keep()), (explore, split.explore())):
            wanted = [100 * got.estimate, *np.clip([100 * got.low, 100 * got.high], 0, 100)]
            assert [float(x) for x in re.findall(r"-?[\d.]+", cell)] == pytest.approx(wanted, abs=0.051)
        wanted = [split.preserved, split.lost, split.gained]
        assert [float(x) for x in problems] == pytest.approx(wanted, abs=0.051)
    browser.choose("k", "k = 32")
    assert not browser.row("kept-table", "base") and browser.row("kept-table", "grpo")
    browser.check()


@pytest.mark.slow
@needs_browser
def test_style_shares_are_those_of_the_chosen_runs(browser, records):
    browser.tick("seeds", {1, 2})
    rows = stats.sampled(stats.final(records))
    rows = rows[(rows["suite"] == "in_domain") & (rows["method"] == "grpo") & (rows["variant"] == "main")]
    counts = rows[rows["seed"].isin([1, 2])][[*stats.STYLES, "other"]].sum()
    text = browser.all('#style-table tr[data-method="grpo"] .bar')[0].get_attribute("aria-label")
    assert text == ", ".join(f"{name} {100 * count / counts.sum():.1f} %" for name, count in counts.items())
    browser.check()


@pytest.mark.slow
@needs_browser
def test_a_problem_has_its_counts_and_the_answers_with_their_verdicts(browser, records):
    browser.tick("methods", {"base", "grpo"}, [one["id"] for one in explorer_data(records, None, "cpu")["methods"]])
    assert browser.all("#problem option:checked")[0].text.startswith("in_domain-003: ")
    assert browser.all("#asked dd")[1].text == "question & more"
    base, grpo = browser.all("#answers article")
    assert "base model 0: 5 of 8 right" in base.text and "run 0: 8 of 8 right" in grpo.text
    items = [item.text for item in browser.all("#answers article:first-child li")]
    assert [item.partition("\n")[2] for item in items] == [CORRECT[1], WRONG[1]]
    assert "5 × ✔ correct" in items[0] and "3 × ⊘ no answer" in items[1]
    browser.driver.find_element("id", "after").click()
    chosen = browser.all("#problem option:checked")[0].text.partition(":")[0]
    rows = stats.sampled(stats.final(records))
    rows = rows[(rows["problem_id"] == chosen) & (rows["method"] == "grpo") & (rows["variant"] == "main")]
    assert browser.row("problem-table", "grpo")[0] == f"{rows['correct'].sum()} of {rows['n'].sum()}"
    assert "No answers" in browser.driver.find_element("id", "answers-note").text
    assert not browser.all("#answers article") and browser.driver.title.startswith("Explorer")
    browser.check()


@pytest.mark.slow
@needs_browser
def test_keys_reach_every_choice(browser):
    from selenium.webdriver import ActionChains, Keys

    wanted = ["suite", "k", "problem", "after"]
    reached = []
    for _ in range(80):
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        reached.append(browser.script("return document.activeElement.id"))
    assert [name for name in reached if name in wanted][:4] == wanted
    browser.script("document.getElementById('suite').focus()")
    ActionChains(browser.driver).send_keys("c").perform()  # of "cross domain"
    assert browser.script("return document.getElementById('said').textContent").startswith("cross domain")
    browser.check()
