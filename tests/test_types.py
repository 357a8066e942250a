"""The whole library passes the type checker as pyproject.toml sets it, and an importer's mistake is told to them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

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


def test_the_library_has_no_type_error_and_an_importers_are_found(tmp_path):
    """One run for both, so that the configuration is shown to find what is wrong."""
    misuse = tmp_path / "misuse.py"
    misuse.write_text(MISUSE)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "dphlib", str(misuse)],
        cwd=ROOT, text=True, capture_output=True, timeout=300,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if ": error:" in line]
    ours = [line for line in lines if "misuse.py" not in line]
    assert done.stderr == "" and not ours, "\n".join([*ours, done.stderr])
    found = {int(re.search(r"misuse\.py:(\d+):", line)[1]) for line in lines}
    assert found == {5, 6, 7, 8}, done.stdout


def test_the_public_modules_are_checked_strictly():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert settings["disallow_untyped_defs"] and settings["check_untyped_defs"] and settings["warn_unused_ignores"]
    (strict,) = [one for one in settings["overrides"] if one.get("disallow_any_generics")]
    named = {name.removeprefix("dphlib.") for name in strict["module"]}
    assert {"divergences", "conjugates", "losses", "partition", "verify_sql", "verify_math", "stats", "store"} <= named
    assert strict["disallow_untyped_calls"]
    assert all((ROOT / "dphlib" / f"{name}.py").is_file() for name in named)
    assert (ROOT / "dphlib/py.typed").is_file()
