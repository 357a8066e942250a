"""What is published: pages of claims from made-up records, the model card, and the folder for the Hub."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from synthetic import make_records, make_train_logs

from dphlib.analysis import claims as analysis
from dphlib.experiment import bases
from dphlib.experiment.results import CLAIMS_STOPPED
from dphlib.runtime.files import RunError, sha256_file
from dphlib.scores import ArmScores
from dphlib.world.templates import LEADS
from tools import claims, hub, run

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = {
    "profile": "cpu",
    "asked": {"seeds": "3"},
    "machine": {"cpu": "some CPU", "cores": 2, "memory_gib": 8.0, "os": "Linux", "gpus": []},
}


def front_matter(text: str) -> tuple[dict[str, object], str]:
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """A results folder of made-up records: some claims settled, some not run."""
    folder, methods = tmp_path_factory.mktemp("run"), ("base", "grpo", "dapo", "rkl", "dph_f", "dph_js")
    records = make_records(methods, (0, 1, 2), ablations=False, steps=False)
    decided = analysis.evaluate_claims(ArmScores.final(records), make_train_logs(methods), "cpu")
    assert {"not run", "supported"} <= {one.verdict for one in decided}
    (folder / "claims.json").write_text(analysis.to_json(decided))
    (folder / CLAIMS_STOPPED).write_text(
        analysis.to_json([replace(one, verdict="not testable") for one in decided[:1]])
    )
    (folder / "manifest.json").write_text(json.dumps(MANIFEST))
    return folder


def test_each_claim_has_a_page_with_all_that_the_record_says_of_it(recorded, tmp_path, capsys):
    out = tmp_path / "pages"
    assert claims.main(["--out", str(out), "--run", str(recorded)]) == 0
    decided = analysis.from_json((recorded / "claims.json").read_text())
    assert {path.stem for path in out.iterdir()} == {one.id for one in decided} | {"index"}
    assert capsys.readouterr().out == f"{out}: {len(decided)} claims and index.md\n"
    index = (out / "index.md").read_text()
    for one in decided:
        head, body = front_matter((out / f"{one.id}.md").read_text())
        assert (head["claim"], head["verdict"], head["source"]) == (one.id, one.verdict, one.paper_ref)
        assert f"# {one.text}" in body and claims.MEANING[one.verdict] in body
        rows = re.findall(r"^\| (?!part |---)(.*)", body, re.MULTILINE)
        assert len(rows) == len(one.parts)
        for part, row in zip(one.parts, rows, strict=True):
            assert row.startswith(part.label) and f"| {part.verdict} | {analysis.effect_text(part) or '-'} |" in row
        assert "`./run_all.sh cpu --seeds 3`" in body and sha256_file(recorded / "claims.json") in body
        assert ("stopping point: **not testable**" in body) == (one.id == decided[0].id)
        assert f"[{one.text}]({one.id}.md) | {one.paper_ref} | {one.verdict} |" in index
    assert list(claims.MEANING) == list(analysis.VERDICTS)


def test_the_full_run_has_no_manifest_and_its_command_stands_on_the_page(recorded, tmp_path):
    full = tmp_path / "full"
    shutil.copytree(recorded, full)
    (full / "manifest.json").unlink()
    assert f"`{run.FULL_COMMAND}`" in claims.pages(full)["greedy_rises.md"]
    with pytest.raises(RunError, match=r"manifest\.json is not there"):
        claims.pages(full.rename(tmp_path / "other"))


def test_without_a_record_it_says_so_and_writes_nothing(tmp_path, capsys):
    assert claims.main(["--out", str(tmp_path / "pages"), "--run", str(tmp_path)]) == 1
    assert "claims.json is not there" in capsys.readouterr().err and not (tmp_path / "pages").exists()


# --- Models -------------------------------------------------------------------------------------------


def test_the_card_has_front_matter_and_every_files_hash():
    head, body = front_matter((ROOT / hub.CARD).read_text())
    assert head["license"] == "apache-2.0" and head["library_name"] == "transformers"
    listed = json.loads((ROOT / hub.CARD.parent / bases.LIST).read_text())
    files = [file for entry in listed["bases"].values() for file in entry["files"].items()]
    for name, file in [*files, *listed["shared"].items()]:
        assert file["sha256"] == sha256_file(ROOT / hub.CARD.parent / name) and file["sha256"] in body
    assert set(hub.card_blocks(ROOT)) == set(re.findall(r"<!-- generated:(\w+) -->", body))


@pytest.mark.slow
def test_the_folder_for_the_hub_is_whole_and_the_cards_code_runs_in_it(tmp_path):
    out = tmp_path / "hub"
    assert hub.main(["--out", str(out)]) == 0
    assert (out / "README.md").read_bytes() == (ROOT / hub.CARD).read_bytes() and (out / "LICENSE").is_file()
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == [str(i) for i in range(6)]
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    program = f"from transformers import set_seed\nset_seed(0)\n{code}"
    done = subprocess.run([sys.executable, "-c", program], cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = eval(done.stdout)
    assert len(answers) == 4 and all(answer.split()[0] in LEADS.values() for answer in answers), answers
    with pytest.raises(RunError, match="is not empty; give another folder"):
        hub.write(out)


# --- DOI ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("line", "found"), [("", ""), ("doi: 10.5281/zenodo.1\n", "10.5281/zenodo.1")])
def test_the_artifacts_own_doi_is_read_and_not_the_papers(tmp_path, line, found):
    shutil.copy(ROOT / "CITATION.cff", tmp_path)
    with open(tmp_path / "CITATION.cff", "a") as file:
        file.write(f"  doi: 10.1/the-papers\n{line}")
    assert run.doi(tmp_path) == found
