"""Generated blocks of documents: rendered from a template, and put between their marker lines.

A block of a Markdown file is between `<!-- generated:NAME -->` and `<!-- /generated:NAME -->`, one of a TOML or YAML
file between `# generated:NAME` and `# /generated:NAME`. `templates/PAGE.j2` has a Jinja block for each of them, with
underscores for hyphens in its name. The text around a block is written by hand and names no number of a run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dphlib.analysis import tables
from dphlib.analysis.claims import effect_text, joint_text

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def rendered(template: str, **values: Any) -> dict[str, str]:
    """The blocks of a template by name."""
    page = _TEMPLATES.get_template(f"{template}.j2")
    made = {name: "".join(block(page.new_context(values))) for name, block in page.blocks.items()}
    return {name.replace("_", "-"): text for name, text in made.items()}


def fill(text: str, blocks: Mapping[str, str], where: str) -> str:
    """The text with its blocks made anew.

    Raises ValueError for a block that nothing makes, and for one whose marker lines are not there once, in order.
    """
    named = set(re.findall(r"^(?:<!--|#) generated:([\w-]+)", text, re.MULTILINE))
    if unknown := named - set(blocks):
        raise ValueError(f"{where}: no such block: {', '.join(sorted(unknown))}")
    for name, body in blocks.items():
        pattern = re.compile(rf"(?ms)^((?:<!--|#) generated:{name}(?: -->)?\n).*?^((?:<!--|#) /generated:{name}\b)")
        if len(pattern.findall(text)) != 1:
            raise ValueError(
                f"{where}: the lines generated:{name} and /generated:{name} are needed once, in this order"
            )
        text = pattern.sub(lambda match, body=body: match[1] + body + match[2], text)  # type: ignore[misc]
    return text


# --- Markdown -----------------------------------------------------------------------------------------


def code(text: str | None) -> str:
    """A table's cell of literal text, lines joined by ⏎; a dash for None.

    >>> print(code("a | b"), code("```sql x ```"), code(None), code(""))
    `a \\| b` ```` ```sql x ``` ```` - (empty)
    """
    if not text:
        return "-" if text is None else "(empty)"
    text = text.replace("\r\n", "\n").replace("\n", " ⏎ ").replace("|", "\\|").strip()
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    inside = f" {text} " if "`" in (text[0], text[-1]) else text
    return f"{fence}{inside}{fence}"


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table, its last line ended."""
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in (head, ["---"] * len(head), *rows))


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table, intervals and numbers as a reader wants them."""
    return tables.to_markdown(tables.readable(frame))


_TEMPLATES.filters |= {"code": code, "effect": effect_text, "joint": joint_text, "markdown": markdown}
_TEMPLATES.globals |= {"table": table}
