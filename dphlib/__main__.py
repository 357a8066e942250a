"""The command `dph`, also `python -m dphlib`: `cli.main`, and one line where a package that it needs is missing."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dphlib.runtime.extras import hint


def main(arguments: Sequence[str] | None = None) -> int:
    """Calls `cli.main` and returns its exit status; for a missing package 1, with a line that names its extra."""
    try:
        from dphlib.cli import main as cli

        return cli.main(arguments)
    except ModuleNotFoundError as missing:
        if not missing.name or not (line := hint(missing.name)):
            raise
        print(f"dph: {line}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
