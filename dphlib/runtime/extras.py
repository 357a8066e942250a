"""Which extra of `dphlib` brings a module that is not installed."""

from __future__ import annotations

import importlib.metadata
import re


def extra_of(module: str) -> str | None:
    """The first extra of pyproject.toml that lists the package of a module; None where none does.

    The name of the module is taken for the package's, `-` and `_` alike, as it is for all that this library imports.

    >>> extra_of("math_verify.parser"), extra_of("papermill"), extra_of("json")
    ('run', 'notebooks', None)
    """
    wanted = module.partition(".")[0].replace("_", "-").lower()
    try:
        needs = importlib.metadata.requires("dphlib") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for need in needs:
        match = re.match(r"""([\w.-]+).*extra == ["']([\w-]+)["']""", need)
        if match and match[1].replace("_", "-").lower() == wanted:
            return match[2]
    return None


def hint(module: str) -> str:
    """How to install what is missing, in one line; "" where no extra brings it.

    >>> hint("papermill")
    'papermill is not installed; it comes with: pip install "dphlib[notebooks]"'
    """
    extra = extra_of(module)
    name = module.partition(".")[0]
    return f'{name} is not installed; it comes with: pip install "dphlib[{extra}]"' if extra else ""
