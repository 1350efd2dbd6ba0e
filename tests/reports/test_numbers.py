"""How figures are written."""

from __future__ import annotations

import pytest

from lora_eval.records import TaskComparison
from lora_eval.reports.numbers import (
    difference_text,
    interval_text,
    mean_text,
    p_text,
    plain,
    seconds_text,
    size_text,
)


def task(metric="acc", higher=True, means=None):
    return TaskComparison(
        task="t",
        metric=metric,
        filter="none",
        higher_is_better=higher,
        n=1,
        means=means or {"a": 0.5},
        pairs=(),
    )


def test_shares_are_percent_and_points():
    assert mean_text(task(), 0.625) == "62.5 %"
    assert difference_text(task(), 0.125) == "+12.5"
    assert difference_text(task(), -0.125) == "−12.5"  # noqa: RUF001
    assert difference_text(task(), 0.0) == "0.0"
    assert size_text(task(), 0.05) == "5.0"


def test_other_metrics_keep_their_units():
    perplexity = task("word_perplexity", higher=False, means={"a": 6.7})
    assert mean_text(perplexity, 6.7312) == "6.73"
    assert difference_text(perplexity, 0.2789) == "+0.279"
    bits = task("bits_per_byte", higher=False, means={"a": 0.8})
    assert mean_text(bits, 0.8) == "0.800"  # below 1, but no share


@pytest.mark.parametrize("write", [mean_text, difference_text, size_text])
def test_nothing_is_a_dash_and_never_zero(write):
    assert write(task(), None) == "–"  # noqa: RUF001


def test_interval_of_a_pair_without_one():
    from lora_eval.records import Pair

    pair = Pair(
        a="a", b="b", n=3, difference=0.1, ci_low=None, ci_high=None, level=0.95, p_value=None,
        p_adjusted=None, method="m", wins=0, losses=0, ties=3, mde=None, verdict="inconclusive",
    )  # fmt: skip
    assert interval_text(task(), pair) == "–"  # noqa: RUF001


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (1.0, "1.00"), (0.0412, "0.041"), (0.00052, "0.00052"), (3e-9, "< 0.0001")],  # noqa: RUF001
)
def test_p_values(value, text):
    assert p_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1234.5, "1,234"), (12.345, "12.3"), (0.05878, "0.0588"), (100.0, "100")]
)
def test_plain_numbers(value, text):
    assert plain(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(3.26, "3.3 s"), (42.0, "42 s"), (185.4, "3 min 05 s"), (7860.0, "2 h 11 min")]
)
def test_seconds(value, text):
    assert seconds_text(value) == text
