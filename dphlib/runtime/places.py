"""Where the notebooks, the results and the reference run are: in a clone, or for an installed package.

In a clone of the repository the notebooks are beside the package and results go to its `artifacts/`. An installed
package carries the notebooks and the numbers of the reference run that they show beside a reader's own; its results go
to `artifacts/` in the folder that a command is called from.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent
"""The repository; for an installed package the folder that it is in."""
IN_REPOSITORY = (ROOT / "pyproject.toml").is_file() and (ROOT / "notebooks").is_dir()
NOTEBOOKS = ROOT / "notebooks" if IN_REPOSITORY else PACKAGE / "_notebooks"
ARTIFACTS = ROOT / "artifacts" if IN_REPOSITORY else Path("artifacts")
REFERENCE = ARTIFACTS / "reference"
"""The committed results of a full CPU run."""
REFERENCE_METRICS = REFERENCE / "metrics" if IN_REPOSITORY else PACKAGE / "_reference"
"""Of each notebook the numbers that the reference run recorded, `<name>.json`."""
PROTOCOL = ROOT / "docs" / "protocol.json"
"""What the CPU world's experiment fixed beforehand; an installed package does not have it."""
