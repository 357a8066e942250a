"""A run of about a minute gives the committed numbers: exactly where the instruction set can be pinned, else nearly."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).resolve().parent / "golden"
EXPECTED = json.loads((GOLDEN / "numbers.json").read_text())


def is_amd_with_avx2() -> bool:
    """What the digests were made on; MKL computes otherwise on Intel's processors."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    return platform.machine() == "x86_64" and "AuthenticAMD" in text and " avx2 " in text


@pytest.fixture(scope="module")
def found() -> dict:
    done = subprocess.run([sys.executable, str(GOLDEN / "measure.py")], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.skipif(not is_amd_with_avx2(), reason="the digests are of AMD's processors with AVX2")
def test_every_digest_is_the_committed_one(found):
    assert {name: row["digest"] for name, row in found.items()} == {n: r["digest"] for n, r in EXPECTED.items()}


def test_the_numbers_are_near_the_committed_ones(found):
    assert found.keys() == EXPECTED.keys()
    for name, row in EXPECTED.items():
        assert found[name]["statistics"] == pytest.approx(row["statistics"], rel=0.25), name
