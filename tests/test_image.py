"""The Dockerfile without Docker: what its build sets up is all that its commands need, for a user without rights."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from test_setup import NEEDS, TORCH, Clone

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "Dockerfile").read_text()


def said(word: str) -> list[str]:
    return re.findall(rf"(?m)^{word} (.+)$", TEXT)


def test_after_the_images_build_its_commands_install_nothing(tmp_path):
    (build,) = (shlex.split(line) for line in said("RUN") if line.startswith("./run_all.sh"))
    (entry,), (default,) = map(json.loads, said("ENTRYPOINT")), map(json.loads, said("CMD"))
    assert [build[0]] == entry
    clone = Clone(tmp_path)
    assert clone.run(*build[1:])[0] == 0 and clone.installs == [TORCH, NEEDS]
    commands = [
        shlex.split(words) for words in re.findall(r"(?m)^#   docker run [^#\n]*? dph(?: ([^#\n]+?))? *(?:#.*)?$", TEXT)
    ]
    assert commands == [[], ["test", "-m", "not slow"]]
    for command in (default, ["smoke"], *filter(None, commands)):
        assert clone.run(*command)[0] == 0
        calls = clone.calls()
        assert calls and not [call for call in calls if " install " in call], command


def test_the_user_is_not_root_and_owns_what_it_writes():
    lines = [line for line in TEXT.splitlines() if line and not line.startswith("#")]
    user = lines.index("USER dph")
    assert not [line for line in lines[:user] if line.startswith(("COPY", "RUN ./"))]
    assert all("--chown=dph:dph" in line for line in lines if line.startswith("COPY"))
    assert not [line for line in lines[user + 1 :] if line.startswith("USER")]
