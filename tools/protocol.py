"""docs/protocol.json from the settings; its hash and the claims in docs/protocol.md are blocks of `tools.site`.

python -m tools.protocol            # says what differs, and fails then
python -m tools.protocol --write    # before the first run, or with a deviation that the page lists
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dphlib.analysis.claims import CLAIMS
from dphlib.experiment import protocol
from dphlib.runtime.files import sha256_file, write_json
from dphlib.runtime.places import PROTOCOL


def page_blocks(root: Path) -> dict[str, str]:
    """Name of a generated block of docs/protocol.md -> its text."""
    claims = [f"| {c.id} | {c.text} | {c.paper_ref} | {'yes' if c.headline else 'no'} |" for c in CLAIMS]
    table = ["| claim | text | source | headline |", "|---|---|---|---|", *claims]
    return {"hash": f"`{sha256_file(root / 'docs' / PROTOCOL.name)}`\n", "claims": "\n".join(table) + "\n"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.protocol", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the file")
    if parser.parse_args(arguments).write:
        write_json(PROTOCOL, protocol.configuration())
        return 0
    fixed = json.loads(PROTOCOL.read_text(encoding="utf-8"))
    found = list(protocol.differences(fixed, protocol.configuration()))
    print("\n".join(found) or f"{PROTOCOL.name}: the settings are the protocol's")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
