"""The paper's tables of `paper.toml`, in per cent, with where the numbers come from; no computation.

The paper's full text was not at hand: a number that is not here is not available.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dphlib.runtime.files import table_beside

PROVENANCE = {
    "image": "a table image in the authors' repository",
    "second_hand": "a third party's notes on the paper",
    "code": "the authors' scripts as read",
}
CITATION = "arXiv 2509.07430"


@dataclass(frozen=True, slots=True)
class PaperTable:
    """One table of the paper.

    Args:
        title: which table, of what model.
        columns: what each number of a row is.
        rows: row name (a method, or an eta) -> numbers in the order of `columns`.
        digits: decimals that it is printed with.
    """

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[float]]
    digits: int = 1

    def cell(self, row: str, column: str) -> float | None:
        """A number, None where the paper has no such row; KeyError for an unknown column.

        >>> TABLE_1.cell("dph_js", "BIRD Pass@8"), TABLE_1.cell("dph_js_definition", "BIRD Pass@8")
        (70.5, None)
        """
        if column not in self.columns:
            raise KeyError(f"{self.title} has no column {column!r}; it has {', '.join(self.columns)}")
        return self.rows[row][self.columns.index(column)] if row in self.rows else None

    def text(self, row: str, column: str) -> str:
        """The number as printed, "" where the paper has no such row."""
        value = self.cell(row, column)
        return "" if value is None else f"{value:.{self.digits}f}"


_TABLES = table_beside(__file__)
TABLE_1 = PaperTable(**_TABLES["table_1"])
TABLE_2 = PaperTable(**_TABLES["table_2"])
TABLE_3 = PaperTable(**_TABLES["table_3"])
TABLE_3_QWEN = PaperTable(**_TABLES["table_3_qwen"])
TABLE_5 = {method: PaperTable(**table) for method, table in _TABLES["table_5"].items()}
ETA = {
    "dapo": "0.01, reverse KL",
    **dict.fromkeys(("rkl", "alpha_0.2", "alpha_0.5", "alpha_0.8", "dph_f"), "0.01-0.05"),
    "dph_js": "0.05-0.2",
}
"""Weights in the authors' scripts, at a learning rate of 1e-6; the one named dapo keeps a reverse-KL term."""
