"""How figures are written."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lora_eval.records import Pair, TaskComparison
from lora_eval.reports.numbers import (
    MINUS,
    about_text,
    difference_text,
    fixed,
    interval_text,
    margin_text,
    mean_text,
    p_text,
    plain,
    points_text,
    ratio_interval_text,
    ratio_text,
    seconds_text,
    size_text,
    supported_decimals,
)
from tests.conftest import CHECKOUT


def task(metric="acc", higher=True, means=None, pairs=(), n=200):
    return TaskComparison(
        task="t",
        metric=metric,
        filter="none",
        higher_is_better=higher,
        n=n,
        means=means or {"a": 0.5},
        pairs=pairs,
    )


def pair(difference, low=None, high=None, **changes):
    values = {
        "a": "a", "b": "b", "n": 200, "difference": difference, "ci_low": low, "ci_high": high, "level": 0.95,
        "p_value": None, "p_adjusted": None, "method": "m", "wins": 0, "losses": 0, "ties": 3, "mde": None,
        "verdict": "inconclusive",
    }  # fmt: skip
    return Pair(**(values | changes))


def number(text):
    return float(text.replace(MINUS, "-").replace(",", "").removesuffix(" %"))


def unit(text):
    """What one step of the last printed digit is worth."""
    return 10.0 ** -len(text.partition(".")[2])


def test_shares_are_percent_and_points_with_the_digits_of_their_interval():
    found = pair(-0.075, -0.1213, -0.0322, mde=0.0644)
    assert difference_text(task(), found) == "−8"  # noqa: RUF001
    assert interval_text(task(), found) == "−12 to −3"  # noqa: RUF001
    assert size_text(task(), found, found.mde) == "6"
    finer = pair(0.0041, -0.0083, 0.0164)
    assert (difference_text(task(), finer), interval_text(task(), finer)) == ("+0.4", "−0.8 to +1.6")  # noqa: RUF001
    assert difference_text(task(), pair(0.0, -0.011, 0.011)) == "0.0"


def test_means_can_be_subtracted_by_eye():
    pairs = (pair(-0.075, -0.1213, -0.0322), pair(0.002, -0.00001, 0.00001, a="b", b="c"))
    assert mean_text(task(pairs=pairs), 0.905) == "90.5 %"  # 200 items cannot tell hundredths apart
    assert mean_text(task(pairs=pairs, n=100), 0.91) == "91 %"
    assert mean_text(task(pairs=(pair(0.01, 0.007, 0.013),), n=20_000), 0.61234) == "61.234 %"
    story = task("word_perplexity", False, {"a": 2.0757}, pairs=(pair(0.0124, -0.004, 0.029),))
    assert mean_text(story, 2.0757) == "2.0757"
    assert mean_text(task(), 0.625) == "62.5 %"  # nothing to go by
    assert mean_text(task("word_perplexity", False, {"a": 6.7}), 6.7312) == "6.73"


def test_other_metrics_keep_their_units():
    perplexity = task("word_perplexity", higher=False, means={"a": 6.7})
    assert difference_text(perplexity, pair(0.2789)) == "+0.279"
    assert difference_text(perplexity, pair(0.2789, 0.23, 0.33)) == "+0.28"
    bits = task("bits_per_byte", higher=False, means={"a": 0.8})
    assert mean_text(bits, 0.8) == "0.800"  # below 1, but no share


def test_ratios():
    found = pair(0.1, ratio=1.0431, ratio_low=1.0213, ratio_high=1.0652)
    assert (ratio_text(found), ratio_interval_text(found)) == ("1.043", "1.021 to 1.065")
    near = pair(0.1, ratio=1.2, ratio_low=1.0004, ratio_high=1.4)
    assert ratio_interval_text(near) == "1.0004 to 1.40"
    assert (ratio_text(pair(0.1)), ratio_interval_text(pair(0.1))) == ("–", "–")  # noqa: RUF001


def test_nothing_is_a_dash_and_never_zero():
    nothing = pair(None)
    found = [mean_text(task(), None), difference_text(task(), nothing), size_text(task(), nothing, None)]
    assert [*found, interval_text(task(), pair(0.1))] == ["–"] * 4  # noqa: RUF001


@pytest.mark.parametrize(
    ("half", "decimals"),
    # Review of Particle Physics, Introduction: 100 to 354 two digits, 355 to 949 one, from 950 on 1000.
    [(0.119, 2), (0.354, 2), (0.356, 1), (0.949, 1), (0.96, 1), (1.0, 1), (3.5, 1), (3.6, 0), (40.0, 0)],
)
def test_the_rule_of_the_particle_data_group(half, decimals):
    assert supported_decimals(-half, half) == decimals


def test_the_documented_examples_are_what_is_printed():
    text = (CHECKOUT / "docs" / "report.md").read_text("utf-8")
    rows = re.findall(
        r"^\| (-?[\d.]+) \((-?[\d.]+) to (-?[\d.]+)\) \| [\d.]+ \| (\S+) \((.+)\) \|$", text, re.M
    )
    assert len(rows) == 3
    for *values, middle, interval in rows:
        difference, low, high = (float(value) / 100 for value in values)
        found = pair(difference, low, high)
        assert (difference_text(task(), found), interval_text(task(), found)) == (middle, interval)


numbers = st.floats(-1e6, 1e6, allow_nan=False)


@given(numbers, st.floats(1e-6, 1e6), st.floats(0, 1))
def test_digits_are_those_that_the_interval_supports(low, width, place):
    found = pair(low + place * width, low, low + width)
    assume(low + width > low)
    half = (found.ci_high - found.ci_low) / 2
    plain_task = task("bleu", means={"a": 1000.0})
    text = difference_text(plain_task, found)
    assert "e" not in text
    if half >= 3.55:
        assert "." not in text
    else:
        assert 0.028 * half < unit(text) < 0.283 * half
    assert abs(number(text) - found.difference) <= 0.501 * unit(text)


@given(numbers, st.floats(1e-9, 1e6))
def test_an_interval_is_printed_on_its_own_side_of_zero(low, width):
    found = pair(0.0, low, low + width)
    ends = [number(text) for text in interval_text(task("bleu", means={"a": 1000.0}), found).split(" to ")]
    for value, printed in zip((found.ci_low, found.ci_high), ends, strict=True):
        if abs(value) > 1e-11:
            assert math.copysign(1, value) == math.copysign(1, printed)
            assert printed != 0


@given(st.floats(-1, 1), st.floats(1e-6, 1))
def test_suite_scores_follow_the_same_rule(low, width):
    middle, interval = points_text(low, low + width / 2, low + width)
    own = pair(low + width / 2, low, low + width)
    assert (middle, interval) == (difference_text(task(), own), interval_text(task(), own))


@given(st.integers(-4000, 4000), st.integers(0, 2))
def test_a_share_is_rounded_as_its_percentage(thousandths, decimals):
    """In binary -0.075 is a little less than that and -7.5 is not: both are rounded as decimals."""
    share = thousandths / 1000
    points = fixed(100 * share, decimals, signed=True)
    assert number(fixed(share, decimals + 2, signed=True)) == pytest.approx(number(points) / 100, abs=1e-9)


@pytest.mark.parametrize(("margin", "text"), [(0.05, "5"), (0.025, "2.5"), (0.07, "7"), (0.00125, "0.125")])
def test_a_margin_is_printed_as_it_was_stated(margin, text):
    """It is a choice and no estimate: with the digits of a wide interval 2.5 would be told as 2."""
    assert margin_text(task(), margin) == text
    assert margin_text(task("bleu", means={"a": 30.0}), margin) == f"{margin:g}"


@pytest.mark.parametrize(
    ("n", "text"), [(7, "7"), (21, "21"), (440, "440"), (237, "240"), (1320, "1,400"), (102_981, "110,000")]
)
def test_a_needed_number_of_items_is_a_rough_one(n, text):
    assert about_text(n) == text


@given(st.integers(1, 10**9))
def test_a_needed_number_is_never_rounded_down_and_by_a_tenth_at_most(n):
    about = number(about_text(n))
    assert n <= about <= 1.1 * n
    assert about_text(int(about)) == about_text(n)


@given(st.floats(-1e9, 1e9), st.integers(0, 8))
def test_no_text_says_minus_zero(value, decimals):
    text = fixed(value, decimals, signed=True)
    assert not re.fullmatch(rf"[+{MINUS}-]0(\.0*)?", text)


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
