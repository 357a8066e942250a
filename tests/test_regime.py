"""The base's regime: measured right from records, required on the profile `cpu` only."""

from __future__ import annotations

from math import log

import pandas as pd
import pytest
from synthetic import make_records, make_rows, with_draws, with_styles

from dphlib.analysis.regime import RegimeError, regime, require_regime
from dphlib.settings.profiles import profile

CPU = profile("cpu")


def a_base() -> pd.DataFrame:
    """In the regime: of 20 problems, 18 solved by some answers; each style a quarter of the answers."""
    in_domain = [[1] * count + [0] * (32 - count) for count in (32, 6, 2) for _ in range(6)] + [[0] * 32] * 2
    parts = [
        make_rows(correct=in_domain, greedy=[1] * 8 + [0] * 12, suite="in_domain"),
        make_rows(correct=[[1] * 16 + [0] * 16] * 17 + [[0] * 32] * 3, suite="cross_domain"),
        make_rows(correct=[[1] * 8 + [0] * 24] * 5 + [[0] * 32] * 5, suite="out_of_domain"),
    ]
    return with_styles(pd.concat(parts, ignore_index=True), 4)


def presamples(sql: list[int], sums: list[int]) -> pd.DataFrame:
    counts = {"train": sql, "sums_train": sums}
    return pd.concat([pd.DataFrame({"suite": suite, "correct": of}) for suite, of in counts.items()], ignore_index=True)


GOOD = presamples([8, 6, 5, 0, 3], [7, 0, 1, 2])


def test_values_are_those_counted_by_hand():
    frame = regime(a_base(), GOOD, CPU).set_index("quantity")
    value = frame["value"]
    assert value["in domain, greedy (%)"] == 40
    assert value["in domain, Pass@1 (%)"] == pytest.approx(100 * 6 * (32 + 6 + 2) / 32 / 20)
    assert value["in domain, Pass@32 (%)"] == 90  # each problem with one right answer among the 32
    assert value["in domain, style entropy (nats)"] == pytest.approx(log(4))
    assert value["out of domain, Pass@1 (%)"] == pytest.approx(100 * 8 / 32 / 2)
    assert value["D_pef, share of SQL prompts (%)"] == 40  # 8 and 6 of 8 reach the threshold 6
    assert value["D_pef, share of sums (%)"] == 25
    assert frame["inside"].all()
    require_regime(frame.reset_index())


def test_other_methods_do_not_change_it():
    records = make_records(ablations=False, steps=False)
    base = records[records["method"] == "base"]
    assert len(records) > len(base)
    pd.testing.assert_frame_equal(regime(records, GOOD, CPU), regime(base, GOOD, CPU))


@pytest.mark.parametrize(
    ("records", "presample", "quantity"),
    [
        (a_base().assign(correct=a_base()["n"]), GOOD, "in domain, Pass@32"),  # saturated
        (a_base().assign(correct=0), GOOD, "in domain, greedy"),
        (with_styles(a_base(), 1), GOOD, "style entropy"),  # one style is left
        (a_base(), presamples([8, 8, 8, 7], [7, 0]), "share of SQL prompts"),  # nothing to explore
        (a_base(), presamples([8, 0, 0], [0, 0]), "share of sums"),
    ],
)
def test_outside_is_refused_by_name_on_cpu_and_only_shown_on_smoke(records, presample, quantity):
    frame = regime(records, presample, CPU)
    with pytest.raises(RegimeError, match=quantity):
        require_regime(frame)
    require_regime(frame, "smoke")


def test_too_few_answers_are_not_measured_and_not_inside():
    records = a_base()
    frame = regime(with_draws(records, 16), GOOD, CPU).set_index("quantity")
    assert pd.isna(frame.loc["in domain, Pass@32 (%)", "value"]) and not frame.loc["in domain, Pass@32 (%)", "inside"]
    assert pd.notna(frame.loc["in domain, Pass@16 (%)", "value"])
    with pytest.raises(RegimeError, match=r"Pass@32 .* is not measured, 75 to 98"):
        require_regime(frame.reset_index())


def test_no_base_is_an_error():
    records = make_records(("grpo",), (0,), ablations=False, steps=False)
    with pytest.raises(ValueError, match="evaluate it first"):
        regime(records, GOOD, CPU)
