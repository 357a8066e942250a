"""The settings of the profile `cpu` are those of docs/protocol.json, and that file is the one that the page names."""

from __future__ import annotations

import json
import re

import pytest

from dphlib.cli import main as cli
from dphlib.experiment import protocol
from dphlib.runtime.files import InputError, sha256_file
from dphlib.runtime.places import PROTOCOL


def test_the_settings_are_the_protocols():
    fixed = json.loads(PROTOCOL.read_text(encoding="utf-8"))
    assert list(protocol.differences(fixed, protocol.configuration())) == []


def test_the_page_names_the_files_hash():
    page = PROTOCOL.with_suffix(".md").read_text(encoding="utf-8")
    assert re.findall(r"^`([0-9a-f]{64})`$", page, re.MULTILINE) == [sha256_file(PROTOCOL)]


def test_a_run_of_other_settings_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    fixed = protocol.configuration()
    fixed["train"]["lr"] = 0.5
    del fixed["claims"]["pass_k_falls"]
    other = tmp_path / "protocol.json"
    other.write_text(json.dumps(fixed), encoding="utf-8")
    with pytest.raises(InputError, match=r"^claims\.pass_k_falls is .*, the protocol has null \(and 1 more\); undo it"):
        protocol.check(other)
    monkeypatch.setattr("dphlib.cli.run.PROTOCOL", other)
    assert cli.main(["run", "--profile", "cpu", "--artifacts", str(tmp_path)]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "docs/protocol.md" in said[0]
    assert not (tmp_path / "cpu").exists()
    protocol.check(tmp_path / "absent.json")
