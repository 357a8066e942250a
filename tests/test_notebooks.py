"""All notebooks on the smallest profile, from nothing, through the command that a reader uses; then once more.

What a damaged or interrupted run does is in `test_run_command`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dphlib.cli import main as cli
from dphlib.experiment.store import verify_run_manifest
from dphlib.report.notebooks import check_executed

pytestmark = pytest.mark.slow

STUDIES = "controls,eta,answers,direction,hard,temperature"  # smoke's own and what is beyond the protocol
NOTEBOOKS = sorted(path.stem for path in (Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


def run(artifacts: Path) -> int:
    return cli.main(["run", "--profile", "smoke", "--artifacts", str(artifacts), "--studies", STUDIES])


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    artifacts = tmp_path_factory.mktemp("artifacts")
    assert run(artifacts) == 0
    return artifacts


def test_every_notebook_ran_to_its_end_and_left_its_numbers(smoke):
    assert len(NOTEBOOKS) == 9
    for name in NOTEBOOKS:
        assert check_executed(smoke / "smoke" / "notebooks" / f"{name}.ipynb") > 3
        assert json.loads((smoke / "smoke" / "metrics" / f"{name}.json").read_text())


def test_results_are_whole(smoke):
    assert verify_run_manifest(smoke / "smoke") == []
    page = (smoke / "smoke" / "report" / "index.html").read_text()
    assert all(f"notebooks/{name}.html" in page for name in NOTEBOOKS)
    beyond = [("fig14", "hard"), ("fig18", "temperature")]
    files = [
        f"{start}{name}{end}"
        for number, name in beyond
        for start, end in (("", ".parquet"), ("tables/table_", ".csv"), (f"figures/{number}_", ".svg"))
    ]
    for name in (*files, "tables/table_controls.csv"):
        assert (smoke / "smoke" / name).is_file()


def test_smoke_supports_no_claim(smoke):
    claims = json.loads((smoke / "smoke" / "claims.json").read_text())
    assert claims
    assert "supported" not in {claim["verdict"] for claim in claims}


def test_the_second_run_executes_nothing_and_says_so(smoke, capsys):
    assert run(smoke) == 0
    out = capsys.readouterr().out
    assert out.count(": reused") == len(NOTEBOOKS)
    assert "all notebooks reused" in out
