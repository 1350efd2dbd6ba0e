"""The score interval is the score test turned round, and keeps its level where few items change."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom, norm

from lora_eval.stats.score_interval import score_interval, score_statistic

counts = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 60)).filter(any)
LEVELS = st.sampled_from([0.2, 0.8, 0.9, 0.95, 0.998])


def likeliest_loss(x, wins, losses, ties):
    """The share of losses that is the most likely one if the true difference is x, by search."""

    def surprise(q):
        shares = ((wins, q + x), (losses, q), (ties, 1 - 2 * q - x))
        return -sum(count * math.log(max(share, 1e-300)) for count, share in shares if count)

    low, high = max(0.0, -x), (1 - x) / 2
    found = minimize_scalar(surprise, bounds=(low, high), method="bounded", options={"xatol": 1e-12})
    return min((low, high, found.x), key=surprise)


@given(counts, st.floats(-0.95, 0.95))
def test_statistic_is_the_score_test_with_the_likeliest_nuisance(numbers, x):
    wins, losses, _ = numbers
    n, q = sum(numbers), likeliest_loss(x, *numbers)
    variance = n * (2 * q + x * (1 - x))
    if variance > 1e-6:
        expected = (wins - losses - n * x) / math.sqrt(variance)
        assert score_statistic(x, *numbers) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(counts, LEVELS)
def test_ends_are_where_the_test_just_rejects(numbers, level):
    z = norm.ppf(0.5 + level / 2)
    low, high = score_interval(*numbers, level)
    assert -1 <= low <= (numbers[0] - numbers[1]) / sum(numbers) <= high <= 1
    if low > -1:
        assert score_statistic(low, *numbers) == pytest.approx(z, rel=1e-6)
    if high < 1:
        assert score_statistic(high, *numbers) == pytest.approx(-z, rel=1e-6)


@given(counts, LEVELS)
def test_exchanged_arms_mirror_it(numbers, level):
    wins, losses, ties = numbers
    low, high = score_interval(wins, losses, ties, level)
    assert score_interval(losses, wins, ties, level) == (-high, -low)


@given(counts, LEVELS, LEVELS)
def test_more_confidence_is_wider(numbers, one, other):
    small, large = sorted((one, other))
    inner, outer = score_interval(*numbers, small), score_interval(*numbers, large)
    assert outer[0] <= inner[0] + 1e-12
    assert outer[1] >= inner[1] - 1e-12


def test_nothing_changed_has_a_closed_form():
    z = norm.ppf(0.95)
    assert score_interval(0, 0, 50, 0.9)[1] == pytest.approx(z**2 / (50 + z**2), rel=1e-9)


@pytest.mark.parametrize(("n", "drop"), [(200, 0.01), (200, 0.02), (1000, 0.01)])
def test_a_model_that_only_loses_passes_no_more_often_than_the_level_says(n, drop):
    """The Dirichlet bound lets 13 %, 9 % and 7 % of such models pass instead of 5 %."""
    passed = sum(
        binom.pmf(losses, n, drop)
        for losses in range(n + 1)
        if binom.pmf(losses, n, drop) > 1e-12 and score_interval(0, losses, n - losses, 0.9)[0] > -drop
    )
    assert passed <= 0.05
