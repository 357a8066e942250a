"""What docs/protocol.md fixed before the first RL run: the CPU profile's settings, the methods, the claims.

`configuration()` is what they are now, docs/protocol.json what was fixed, with its hash in docs/protocol.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dphlib.analysis.claims import CLAIMS
from dphlib.experiment import bases
from dphlib.runtime.files import InputError
from dphlib.settings.methods import CONFIGS, DECISIVE
from dphlib.settings.profiles import Profile, profile
from dphlib.settings.studies import STUDIES, comparisons
from dphlib.training.stopping import GAIN, PATIENCE

_PARTS = ("world", "model", "sft", "presample", "train", "evaluation")
_CHANGES_NO_NUMBER = {"checkpoint_every", "threads"}


def configuration() -> dict[str, Any]:
    """The settings that decide the numbers of the profile `cpu`, and how they are judged, as plain data."""
    settings = profile("cpu")
    return json.loads(
        json.dumps(
            {
                **{part: _plain(asdict(getattr(settings, part))) for part in _PARTS},
                "bases": _bases(settings),
                "decisive": DECISIVE,
                "most seeds of others": settings.most_seeds,
                "methods": {name: asdict(config) for name, config in CONFIGS.items()},
                "studies": {
                    name: [f"{one.arm.method} {one.arm.variant}" for one in comparisons(settings, name)]
                    for name in STUDIES
                },
                "stopping": {"patience": PATIENCE, "gain": GAIN},
                "claims": {claim.id: claim.text for claim in CLAIMS},
            }
        )
    )


def _bases(settings: Profile) -> dict[str, str]:
    """Each shipped base's index -> sha256 of its weights."""
    listed = json.loads(bases.listed(settings) or '{"bases": {}}')["bases"]
    return {index: file["sha256"] for index, base in listed.items() for file in base["files"].values()}


def _plain(part: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name not in _CHANGES_NO_NUMBER}


def differences(fixed: Any, now: Any, name: str = "") -> Iterator[str]:
    """What differs, one line per value.

    >>> list(differences({"train": {"lr": 0.1}}, {"train": {"lr": 0.2}}))
    ['train.lr is 0.2, the protocol has 0.1']
    """
    if isinstance(fixed, dict) and isinstance(now, dict):
        for key in sorted(fixed.keys() | now.keys()):
            yield from differences(fixed.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif fixed != now:
        yield f"{name} is {json.dumps(now)}, the protocol has {json.dumps(fixed)}"


def check(path: Path) -> None:
    """Refuses settings that are not those of the protocol in `path`; without that file there is nothing to hold to.

    Raises:
        InputError: names the first value that differs.
    """
    if not path.is_file():
        return
    found = list(differences(json.loads(path.read_text(encoding="utf-8")), configuration()))
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise InputError(f"{found[0]}{more}; undo it, or record the deviation in docs/protocol.md")
