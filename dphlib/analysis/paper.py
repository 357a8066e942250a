"""The paper's tables as data, in per cent, with where the numbers come from; no computation.

The paper's full text was not at hand: a number that is not here is not available.
"""

from __future__ import annotations

from dataclasses import dataclass

PROVENANCE = {
    "fig": "a table image in the authors' repository",
    "2nd": "somebody else's notes on the paper",
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
    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]
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


TABLE_1 = PaperTable(
    "Table 1, Llama-3.1-8B-Instruct, SQL",
    ("BIRD greedy", "BIRD Pass@8", "BIRD Pass@16", "Spider greedy", "Spider Pass@8", "Spider Pass@16"),
    {
        "base": (42.4, 68.8, 75.0, 71.0, 90.9, 93.2),
        "grpo": (58.5, 66.2, 67.7, 73.0, 79.5, 80.6),
        "dapo": (60.0, 67.2, 69.0, 71.1, 75.3, 76.7),
        "rkl": (60.0, 69.8, 71.8, 71.0, 79.0, 80.6),
        "alpha_0.2": (60.1, 67.0, 69.1, 75.4, 78.8, 80.1),
        "alpha_0.5": (60.8, 68.0, 69.8, 75.2, 80.4, 82.5),
        "alpha_0.8": (60.5, 69.2, 70.4, 75.8, 81.7, 83.6),
        "dph_f": (60.4, 70.1, 71.6, 77.4, 84.5, 85.7),
        "dph_js": (62.8, 70.5, 72.4, 76.0, 82.7, 84.1),
    },
)

TABLE_2 = PaperTable(
    "Table 2, out-of-domain mathematics of the SQL-trained Llama-3.1-8B-Instruct (first version of the paper)",
    ("AIME24 P@32", "AMC23 P@32", "Math P@8", "Olympiad P@8", "College Math P@8", "average"),
    {
        "base": (33.33, 80.0, 75.04, 36.89, 45.53, 54.16),
        "grpo": (23.33, 67.5, 65.02, 31.85, 38.4, 45.22),
        "dapo": (20.0, 67.5, 65.82, 34.41, 38.75, 45.30),
        "rkl": (16.67, 62.5, 64.86, 26.96, 41.06, 42.41),
        "alpha_0.2": (26.67, 75.0, 72.20, 37.04, 41.78, 50.54),
        "alpha_0.5": (30.00, 77.5, 72.84, 36.30, 43.44, 52.02),
        "alpha_0.8": (36.67, 77.5, 73.42, 37.19, 44.18, 53.79),
        "dph_f": (26.67, 90.0, 72.26, 36.59, 42.97, 53.69),
        "dph_js": (30.0, 80.0, 73.42, 38.22, 45.74, 53.48),
    },
    digits=2,
)

# From the second source, as fragments; training set and hyper-parameters are not available.
_UNCERTAIN = ("1st column", "2nd column", "3rd column")
TABLE_3 = PaperTable(
    "Table 3, mathematics training, Llama-3.1-8B-Instruct",
    _UNCERTAIN,
    {
        "base": (40.0, 23.3, 95.0),
        "grpo": (33.3, 26.7, 80.0),
        "dph_f": (36.7, 26.7, 90.0),
        "dph_js": (40.0, 26.7, 82.5),
    },
)

TABLE_3_QWEN = PaperTable(
    "Table 3, mathematics training, Qwen2.5-Math-7B",
    _UNCERTAIN,
    {
        "base": (63.3, 56.7, 87.5),
        "grpo": (56.6, 50.0, 97.5),
        "dph_f": (73.33, 50.0, 97.5),
        "dph_js": (66.7, 53.3, 100.0),
    },
)

_GREEDY_16 = ("BIRD greedy", "BIRD Pass@16", "Spider greedy", "Spider Pass@16")

TABLE_5 = {
    "dph_js": PaperTable(
        "Table 5, DPH-JS by its generator, Llama-3.1-8B-Instruct",
        _GREEDY_16,
        {"0.01": (59.8, 68.1, 76.4, 80.8), "0.05": (61.3, 70.9, 75.3, 83.8), "0.2": (62.8, 72.4, 76.0, 84.1)},
    ),
    "dph_js_definition": PaperTable(
        "Table 5, DPH-JS by definition, Llama-3.1-8B-Instruct",
        _GREEDY_16,
        {"0.01": (59.6, 68.2, 76.7, 81.5), "0.05": (61.4, 71.3, 75.9, 84.7), "0.2": (62.4, 71.9, 77.6, 85.5)},
    ),
}

ETA = {
    "dapo": "0.01, reverse KL",
    **dict.fromkeys(("rkl", "alpha_0.2", "alpha_0.5", "alpha_0.8", "dph_f"), "0.01-0.05"),
    "dph_js": "0.05-0.2",
}
"""Weights in the authors' scripts, at a learning rate of 1e-6; the one named dapo keeps a reverse-KL term."""
