"""Scores and likelihoods: parity with SciPy and statsmodels, and what must hold for every input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from lora_eval.errors import InputError
from lora_eval.stats import paired_likelihoods, paired_scores

values = st.floats(-100, 100).map(lambda x: round(x, 3))
pairs_of_scores = st.lists(st.tuples(values, values), min_size=2, max_size=40)


def draw(n=60, seed=0, groups=12):
    rng = np.random.default_rng(seed)
    a = rng.normal(5, 2, n)
    labels = [f"c{i}" for i in rng.integers(0, groups, n)]
    shift = dict(zip(sorted(set(labels)), rng.normal(0.3, 0.5, len(set(labels))), strict=True))
    return a, a + np.array([shift[label] for label in labels]) + rng.normal(0, 1, n), labels


def test_without_clusters_it_is_the_paired_t_test():
    a, b, _ = draw()
    found, reference = paired_scores(a, b), scipy_stats.ttest_rel(b, a)
    interval = reference.confidence_interval(0.95)
    assert found.p_value == pytest.approx(reference.pvalue, rel=1e-12)
    assert (found.ci_low, found.ci_high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert found.method == "paired t"


def test_with_clusters_it_is_the_robust_regression():
    a, b, labels = draw()
    codes = np.unique(labels, return_inverse=True)[1]
    fit = sm.OLS(b - a, np.ones(len(a))).fit(cov_type="cluster", cov_kwds={"groups": codes}, use_t=True)
    found = paired_scores(a, b, labels)
    assert found.difference == pytest.approx(fit.params[0], abs=1e-12)
    assert found.p_value == pytest.approx(fit.pvalues[0], rel=1e-12)
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(fit.conf_int()[0]), abs=1e-12)
    assert found.method == f"cluster-robust t ({len(set(labels))} clusters)"
    assert found.p_value > 1.1 * paired_scores(a, b).p_value  # rows taken as independent look surer


@pytest.mark.parametrize("clustered", [False, True])
def test_perplexity_ratio_is_the_weighted_regression(clustered):
    a, b, labels = draw(seed=3)
    a, b = np.abs(a) * 10, np.abs(b) * 10
    weights = np.random.default_rng(4).integers(5, 300, len(a)).astype(float)
    codes = np.unique(labels, return_inverse=True)[1] if clustered else np.arange(len(a))
    fit = sm.WLS((b - a) / weights, np.ones(len(a)), weights=weights).fit(
        cov_type="cluster", cov_kwds={"groups": codes}, use_t=True
    )
    found = paired_likelihoods(a, b, weights, labels if clustered else None)
    low, high = np.exp(fit.conf_int()[0])
    assert (found.ratio, found.ratio_low, found.ratio_high) == pytest.approx(
        (math.exp(fit.params[0]), low, high), rel=1e-12
    )
    assert found.p_value == pytest.approx(fit.pvalues[0], rel=1e-12)
    perplexities = [math.exp(x.sum() / weights.sum()) for x in (a, b)]
    assert found.difference == pytest.approx(perplexities[1] - perplexities[0], rel=1e-12)
    assert found.ci_low == pytest.approx(perplexities[0] * (low - 1), rel=1e-12)


def test_skewness_is_scipys_and_of_clusters_that_of_their_sums():
    a, b, labels = draw()
    assert paired_scores(a, b).skewness == pytest.approx(scipy_stats.skew(b - a), rel=1e-12)
    codes = np.unique(labels, return_inverse=True)[1]
    sums = np.bincount(codes, weights=b - a - (b - a).mean())
    residual = np.mean(sums**3) / np.mean(sums**2) ** 1.5
    assert paired_scores(a, b, labels).skewness == pytest.approx(residual, rel=1e-12)
    assert paired_scores(b, a).skewness == pytest.approx(-scipy_stats.skew(b - a), rel=1e-12)
    assert paired_scores([1, 2, 3], [2, 3, 4]).skewness is None  # nothing varies


def test_bits_per_byte():
    a, b, weights = [100.0, 50.0], [110.0, 40.0], [80, 20]
    found = paired_likelihoods(a, b, weights, scale="bits")
    assert found.difference == pytest.approx(0.0, abs=1e-15)
    assert found.ratio is None
    assert paired_likelihoods(a, [110.0, 50.0], weights, scale="bits").difference == pytest.approx(
        10 / 100 / math.log(2)
    )


@given(pairs_of_scores)
def test_swapping_arms_mirrors(pairs):
    a, b = zip(*pairs, strict=True)
    forward, backward = paired_scores(a, b), paired_scores(b, a)
    assert backward.difference == -forward.difference
    assert backward.p_value == forward.p_value
    if forward.ci_low is not None:
        assert (backward.ci_low, backward.ci_high) == (-forward.ci_high, -forward.ci_low)
        assert forward.ci_low <= forward.difference <= forward.ci_high
    assert (backward.higher, backward.lower) == (forward.lower, forward.higher)


@given(pairs_of_scores, st.randoms(use_true_random=False))
def test_order_of_items_does_not_matter(pairs, random):
    before = paired_scores(*zip(*pairs, strict=True))
    random.shuffle(pairs)
    after = paired_scores(*zip(*pairs, strict=True))
    assert after == before


@given(st.lists(values, min_size=2, max_size=40))
def test_identical_arms_differ_by_exactly_nothing(scores):
    found = paired_scores(scores, scores)
    assert (found.difference, found.p_value, found.ci_low, found.mde) == (0, 1, None, None)
    assert "no item's score differs" in found.reason


@given(st.lists(st.tuples(st.floats(0.1, 500), st.integers(1, 400)), min_size=2, max_size=30))
def test_identical_likelihoods_have_ratio_exactly_one(documents):
    nll, weights = zip(*documents, strict=True)
    found = paired_likelihoods(nll, nll, weights)
    assert (found.difference, found.ratio, found.p_value) == (0, 1, 1)


def test_what_cannot_be_known_is_none_with_a_reason():
    constant = paired_scores([1, 2, 3], [2, 3, 4])
    assert (constant.difference, constant.p_value, constant.ci_low) == (1, None, None)
    assert "same amount" in constant.reason
    one_cluster = paired_scores([1, 2, 3], [2, 3, 5], ["x", "x", "x"])
    assert (one_cluster.p_value, one_cluster.ci_low) == (None, None)
    assert "1 independent item" in one_cluster.reason
    assert paired_scores([], []).reason == "no item was answered by both arms"
    assert paired_likelihoods([], [], []).n == 0


def test_misaligned_input_is_refused():
    with pytest.raises(InputError, match="clusters"):
        paired_scores([1, 2], [2, 3], ["x"])
    with pytest.raises(InputError, match="weights"):
        paired_likelihoods([1, 2], [2, 3], [1, 0])
