"""The command `dph`, also `python -m dphlib`: `cli`, and one line where an extra that it needs is not installed."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dphlib.runtime.extras import hint


def main(arguments: Sequence[str] | None = None) -> int:
    """Hands over to `cli.main`, whose status it returns; 1 for a missing package of an extra, which it names."""
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
