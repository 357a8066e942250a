"""An importer's mistakes are found: the package says that it is typed. (The library's own: `./run_all.sh check`.)"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MISUSE = """\
from dphlib.divergences import generator
from dphlib.losses import partitioned_loss
from dphlib.stats import pass_at_k

generator("alpha", alpha="0.5")
partitioned_loss("logprobs")
generator(3)
pass_at_k("4", 2, 1).bit_length()
"""


@pytest.mark.slow
def test_an_importers_mistakes_are_found(tmp_path):
    (tmp_path / "misuse.py").write_text(MISUSE)
    command = [sys.executable, "-m", "mypy", "--follow-imports", "silent", str(tmp_path / "misuse.py")]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    found = set(re.findall(r"misuse\.py:(\d+): error:", done.stdout))
    assert done.stderr == "" and found == {"5", "6", "7", "8"}, done.stdout
