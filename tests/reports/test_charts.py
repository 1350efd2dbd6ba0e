"""Axes: every value lies on them, ticks are round, labels tell them apart."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lora_eval.reports.charts import Axis, colour, make_axis, marker
from lora_eval.reports.numbers import MINUS

values = st.lists(st.floats(-1e6, 1e6, allow_nan=False, allow_subnormal=False), min_size=1, max_size=8)


@given(values, st.booleans(), st.integers(3, 8))
def test_every_value_lies_on_the_axis_between_few_ticks_that_differ(found, zero, parts):
    axis = make_axis(found, zero=zero, parts=parts)
    assert all(-0.01 <= axis.at(value) <= 100.01 for value in (*found, *([0.0] if zero else [])))
    ticks = axis.ticks(signed=True)
    assert 2 <= len(ticks) <= parts + 4
    assert len({tick.label for tick in ticks}) == len(ticks)
    assert [tick.at for tick in ticks] == sorted(tick.at for tick in ticks)
    assert sum(tick.zero for tick in ticks) == (axis.low <= 0 <= axis.high)


@given(values)
def test_labels_are_the_values_of_their_places(found):
    axis = make_axis(found)
    span = axis.high - axis.low
    for tick in axis.ticks():
        value = float(tick.label.replace(MINUS, "-").replace(",", ""))
        assert abs(axis.low + span * tick.at / 100 - value) <= 1e-3 * span


def test_small_differences_look_as_small_as_they_are():
    axis = make_axis([0.01, -0.02], smallest=1.0)
    assert axis.at(0.01) - axis.at(-0.02) < 5
    assert make_axis([]).ticks()


def test_ticks_have_the_digits_of_their_step():
    assert [tick.label for tick in Axis(-2.5, 5.0, 2.5).ticks(signed=True)] == [
        f"{MINUS}2.5", "0.0", "+2.5", "+5.0",
    ]  # fmt: skip
    assert [tick.label for tick in Axis(0, 3000, 1000).ticks()] == ["0", "1,000", "2,000", "3,000"]


def test_shapes_go_round_as_colours_do():
    assert [marker(place) for place in range(5)] == ["circle", "square", "diamond", "triangle", "circle"]
    assert (colour(0), colour(6)) == ("arm0", "arm0")
