"""Trains the bases that are shipped and writes them to `artifacts/bases`; those that are there and fit are kept.

    python -m tools.bases [--out FOLDER]

Interrupted, it goes on from the last base that was finished.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dphlib.runtime.files import UserError
from dphlib.runtime.machine import pin_kernels


def main(arguments: list[str] | None = None) -> int:
    pin_kernels(instructions=True)  # as a run that trains its bases does; before torch is imported
    from dphlib.experiment import bases
    from dphlib.settings.profiles import profile

    settings = profile("cpu")
    parser = argparse.ArgumentParser(prog="python -m tools.bases", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=bases.folder_of(settings), help="folder of the bases")
    options = parser.parse_args(arguments)
    try:
        bases.make(settings, options.out, lambda index: print(f"base {index}: {options.out / str(index)}", flush=True))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
