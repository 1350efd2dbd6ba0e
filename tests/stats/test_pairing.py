"""Rounding of other kernels is no change, and nothing larger is taken for rounding."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.records import SampleRow
from lora_eval.stats.pairing import ROUNDING, PairedRows, estimate_metric, without_rounding
from lora_eval.stats.verdict import judge

VALUES = st.lists(st.floats(-500, -0.1), min_size=2, max_size=40)


def _rows(metric: str, values: list[float]) -> tuple[SampleRow, ...]:
    return tuple(
        SampleRow("story", n, str(n), "none", 0, "", "", "", "", {metric: value}, weights={metric: 10.0})
        for n, value in enumerate(values)
    )


@given(VALUES, st.floats(0.01, 0.99))
def test_values_within_rounding_have_not_changed(values: list[float], share: float) -> None:
    near = [value * (1 + share * ROUNDING) for value in values]
    assert without_rounding(values, near) == values
    assert without_rounding(near, values) == near


@given(VALUES, st.floats(1.1, 100))
def test_what_is_larger_stays(values: list[float], share: float) -> None:
    far = [value * (1 + share * ROUNDING) for value in values]
    assert without_rounding(values, far) == far
    assert without_rounding([0.0, 1.0], [1.0, 0.0]) == [1.0, 0.0]


@pytest.mark.parametrize("metric", ["word_perplexity", "score"])
@pytest.mark.parametrize(("shift", "verdict"), [(1e-7, "inconclusive"), (1e-3, "worse")])
def test_a_shift_of_every_item_by_rounding_is_no_verdict(metric: str, shift: float, verdict: str) -> None:
    # As a server answered (SGLang 0.5.23 on a CPU): every document 1e-7 less likely, p = 3e-7.
    values = [-30.0 - math.sin(n) for n in range(40)]
    moved = [value * (1 + shift * (1 + n / 100)) for n, value in enumerate(values)]
    found = estimate_metric(PairedRows(_rows(metric, values), _rows(metric, moved), 0), metric, 0.95)
    judged = judge(found, found.p_value, higher_is_better=metric == "score")
    assert judged.verdict == verdict
    if verdict == "inconclusive":
        assert found.difference == 0.0 and found.ties == 40
        assert "no item's score differs" in (judged.reason or "")
