"""Right-or-wrong items in clusters: the exact sign-flip test, and what a clustered item is worth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from lora_eval.stats import exact_sign_flip, mcnemar_exact, mcnemar_mid_p, paired_binary
from lora_eval.stats.binary import effective_n

cluster_sums = st.lists(st.integers(-6, 6), min_size=1, max_size=9)


def by_enumeration(sums):
    """P(|T| >= |t|) and the mid-p value over all assignments of signs."""
    totals = np.array([np.dot(signs, sums) for signs in itertools.product((-1, 1), repeat=len(sums))])
    seen = abs(sum(sums))
    as_far = np.mean(np.abs(totals) >= seen)
    return as_far, as_far - 0.5 * np.mean(np.abs(totals) == seen)


@given(cluster_sums)
def test_every_assignment_of_signs_is_counted(sums):
    if any(sums):
        assert exact_sign_flip(np.array(sums)) == pytest.approx(by_enumeration(sums), abs=1e-12)
    else:
        assert exact_sign_flip(np.array(sums)) == (1.0, 1.0)


@given(cluster_sums.filter(lambda sums: len(sums) > 1 and any(sums)))
def test_it_is_scipys_permutation_test(sums):
    found = scipy_stats.permutation_test(
        (np.array(sums, dtype=float),),
        lambda x, axis: x.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert exact_sign_flip(np.array(sums))[0] == pytest.approx(found.pvalue, abs=1e-12)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (5, 2), (7, 7), (60, 31), (300, 220)])
def test_with_one_item_in_each_cluster_it_is_mcnemars(wins, losses):
    sums = np.array([1] * wins + [-1] * losses + [0] * 50)
    expected = (mcnemar_exact(wins, losses), mcnemar_mid_p(wins, losses))
    assert exact_sign_flip(sums) == pytest.approx(expected, rel=1e-10)


def test_tiny_p_values_keep_their_digits():
    assert exact_sign_flip(np.array([3] * 200))[0] == pytest.approx(2 * 0.5**200, rel=1e-12)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 12)), min_size=2, max_size=60))
def test_swapping_arms_mirrors_a_clustered_comparison(rows):
    a, b, labels = zip(*rows, strict=True)
    names = [str(label) for label in labels]
    there, back = paired_binary(a, b, clusters=names), paired_binary(b, a, clusters=names)
    assert (there.p_value, there.p_mid, there.effective_n) == (back.p_value, back.p_mid, back.effective_n)
    if there.ci_low is None:
        assert there.reason == back.reason
        return
    assert (there.ci_low, there.ci_high) == pytest.approx((-back.ci_high, -back.ci_low), abs=1e-12)
    assert there.ci_low <= there.difference <= there.ci_high


@given(st.integers(2, 30), st.integers(2, 6), st.randoms(use_true_random=False))
def test_clustered_items_are_worth_no_more_than_independent_ones(groups, size, random):
    labels = np.repeat(np.arange(groups), size)
    differences = np.array([random.choice([-1.0, 0.0, 0.0, 1.0]) for _ in labels])
    assert 0 < effective_n(differences, labels) <= len(labels)


def test_items_that_always_change_together_are_worth_one_for_each_cluster():
    per_cluster = np.array([1.0, 0, 0, 0, -1, 1, 0, 0, 1, 0] * 20)
    labels = np.repeat(np.arange(200), 5)
    worth = effective_n(np.repeat(per_cluster, 5), labels)
    assert worth == pytest.approx(200, rel=0.02)
    nothing = effective_n(np.zeros(1000), labels)
    assert nothing == 200  # no difference varies: the cautious count


def test_one_cluster_bounds_nothing():
    found = paired_binary([0, 1, 0], [1, 1, 1], clusters=["x", "x", "x"])
    assert (found.difference, found.ci_low, found.p_value) == (pytest.approx(2 / 3), None, None)
    assert "1 independent item" in found.reason


def test_labels_that_are_all_different_change_nothing():
    a, b = [0, 1, 1, 0, 1], [1, 1, 0, 0, 1]
    assert paired_binary(a, b, clusters=list("abcde")) == paired_binary(a, b)
