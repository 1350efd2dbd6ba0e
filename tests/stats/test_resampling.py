"""Bootstrap and permutation: SciPy's figures, and where they are refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lora_eval.errors import InputError
from lora_eval.stats import (
    bootstrap_interval,
    paired_binary,
    paired_likelihoods,
    paired_scores,
    permutation_p,
)
from lora_eval.stats.resampling import RESAMPLES, SEED


def scores(n=400, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.beta(5, 3, n)
    return a, np.clip(a + rng.normal(0.012, 0.1, n), 0, 1)


def test_bootstrap_of_items_is_scipys():
    a, b = scores()
    found = paired_scores(a, b, method="bootstrap")
    expected = scipy_stats.bootstrap(
        (b - a,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(SEED)
    ).confidence_interval
    assert (found.ci_low, found.ci_high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.method == "BCa bootstrap interval and sign-flip permutation test by item"


def test_permutation_of_items_is_scipys():
    a, b = scores()
    found = paired_scores(a, b, method="permutation")
    expected = scipy_stats.permutation_test(
        (b - a,),
        lambda x, axis: np.sum(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(SEED),
    )
    assert found.p_value == expected.pvalue
    assert (found.ci_low, found.ci_high) == (paired_scores(a, b).ci_low, paired_scores(a, b).ci_high)


def test_clusters_are_drawn_and_flipped_whole():
    a, b = scores(800)
    labels = [f"c{i // 4:03}" for i in range(800)]
    means = (b - a).reshape(200, 4).mean(axis=1)
    found = paired_scores(a, b, labels, method="bootstrap")
    expected = scipy_stats.bootstrap(
        (means,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(SEED)
    ).confidence_interval
    assert (found.ci_low, found.ci_high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.p_value == permutation_p(means * 4)
    assert found.clusters == 200


def test_unequal_clusters_count_by_their_items():
    sums, sizes = np.array([1.0, 8.0, 2.0] * 80), np.array([1.0, 4.0, 2.0] * 80)
    low, high = bootstrap_interval(sums, sizes, 0.95)
    assert low < sums.sum() / sizes.sum() < high
    assert bootstrap_interval(sizes * 2, sizes, 0.95) is None  # nothing varies


def test_perplexities_are_resampled_by_document():
    rng = np.random.default_rng(3)
    weights = rng.integers(5, 300, 250).astype(float)
    a = weights * rng.gamma(20, 0.1, 250)
    b = a * (1 + rng.normal(-0.01, 0.05, 250))
    plain = paired_likelihoods(a, b, weights)
    found = paired_likelihoods(a, b, weights, method="bootstrap")
    assert found.ratio == plain.ratio
    assert (found.ratio_low, found.ratio_high) == pytest.approx((plain.ratio_low, plain.ratio_high), abs=2e-3)
    assert found.p_value == pytest.approx(plain.p_value, abs=0.02)
    assert found.method.startswith("weighted log ratio, BCa")


def test_right_or_wrong_items_keep_their_exact_test():
    rng = np.random.default_rng(5)
    a, b = rng.random(300) < 0.7, rng.random(300) < 0.8
    plain = paired_binary(a, b)
    assert paired_binary(a, b, method="permutation") == plain
    found = paired_binary(a, b, method="bootstrap")
    assert found.p_value == pytest.approx(plain.p_value, abs=0.01)
    assert (found.ci_low, found.ci_high) == pytest.approx((plain.ci_low, plain.ci_high), abs=0.01)


def test_nothing_changed_has_nothing_to_resample():
    found = paired_scores([0.5] * 300, [0.5] * 300, method="bootstrap")
    assert (found.difference, found.p_value, found.ci_low) == (0, 1, None)
    assert "no item's score differs" in found.reason


@pytest.mark.parametrize("method", ["bootstrap", "permutation"])
def test_fewer_than_200_independent_items_are_refused(method):
    a, b = scores(199)
    with pytest.raises(InputError, match=f"199 independent items.*--method {method} needs 200"):
        paired_scores(a, b, method=method)
    a, b = scores(400)
    with pytest.raises(InputError, match="100 independent"):
        paired_scores(a, b, [f"c{i // 4}" for i in range(400)], method=method)
    with pytest.raises(InputError, match="40 independent"):
        paired_binary([0] * 40, [1] * 40, method=method)


def test_training_runs_are_refused():
    a, b = scores()
    with pytest.raises(InputError, match="training runs"):
        paired_scores(a, b, method="bootstrap", runs={"runs of b": [0.01, 0.02]})
