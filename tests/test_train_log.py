"""What a run logs is documented, and the document is the code's."""

from __future__ import annotations

from dphlib.training import importance
from dphlib.training.log import DOCUMENT, METRICS, Clock, document


def test_the_document_is_made_from_the_code():
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "run python -m dphlib.training.log --write"


def test_every_entry_has_formula_unit_and_what_it_should_look_like():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert metric.formula and metric.unit and metric.expected
        assert "|" not in metric.formula + metric.unit + metric.expected, f"{metric.name} would break the table"
        assert f"| `{metric.name}` | " in document()


def test_phases_and_weights_are_entries():
    names = {metric.name for metric in METRICS}
    assert set(Clock().seconds) <= names
    assert set(importance.ImportanceStats().to_log()) <= names
