"""The whole library passes the type checker as pyproject.toml sets it, and finds an importer's mistakes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
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
def test_the_library_has_no_type_error_and_an_importers_are_found(tmp_path):
    """One run for both, so that the configuration is shown to find what is wrong."""
    misuse = tmp_path / "misuse.py"
    misuse.write_text(MISUSE)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "dphlib", str(misuse)],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=600,
    )
    lines = [line for line in done.stdout.splitlines() if ": error:" in line]
    ours = [line for line in lines if "misuse.py" not in line]
    assert done.stderr == "" and not ours, "\n".join([*ours, done.stderr])
    found = {int(re.search(r"misuse\.py:(\d+):", line)[1]) for line in lines}
    assert found == {5, 6, 7, 8}, done.stdout
