"""Answers to verdicts: SQL by execution, mathematics by strict comparison, in worker processes that can be killed.

    from dphlib.verify import MathVerifier, SqlVerifier, Verdict

The names are imported when they are used: a worker process imports this package too, and has to start quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dphlib.types import Verdict
    from dphlib.verify.math import MathVerifier
    from dphlib.verify.sql import SqlVerifier
    from dphlib.verify.verifier import Verifier

__all__ = ["MathVerifier", "SqlVerifier", "Verdict", "Verifier"]

_HOMES = {
    "MathVerifier": "dphlib.verify.math",
    "SqlVerifier": "dphlib.verify.sql",
    "Verdict": "dphlib.types",
    "Verifier": "dphlib.verify.verifier",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
