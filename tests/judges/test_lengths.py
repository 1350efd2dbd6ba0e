"""The win rate at equal length: against statsmodels, and its interval in simulation."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm

from lora_eval.judges.lengths import length_adjusted
from lora_eval.judges.logistic import cluster_covariance, fit


def draw(generator, n, beta0, beta1, shift=0.3):
    """Scores of both orders averaged, and how much longer b's answer is."""
    longer = generator.normal(shift, 1.0, n) * 300
    chance = 1 / (1 + np.exp(-(beta0 + beta1 * np.tanh(longer / longer.std(ddof=1)))))
    return (generator.random((2, n)) < chance).mean(0), longer


def names(n):
    return [str(number) for number in range(n)]


def test_equals_statsmodels():
    scores, longer = draw(np.random.default_rng(1), 200, 0.4, 1.0)
    found = length_adjusted(scores, longer, names(200), resamples=20)
    design = sm.add_constant(np.tanh(longer / longer.std(ddof=1)))
    expected = sm.GLM(scores, design, family=sm.families.Binomial()).fit(tol=1e-14)
    assert found.win_rate == pytest.approx(100 / (1 + np.exp(-expected.params[0])), abs=1e-8)
    assert found.slope == pytest.approx(expected.params[1], abs=1e-8)


def test_clustered_covariance_equals_statsmodels():
    generator = np.random.default_rng(2)
    design = np.column_stack([np.ones(120), generator.normal(size=(120, 2))])
    labels = generator.choice([0.0, 0.5, 1.0], 120)
    clusters = np.repeat(np.arange(40), 3)
    beta = fit(design, labels, np.ones(120))
    model = sm.GLM(labels, design, family=sm.families.Binomial())
    expected = model.fit(
        tol=1e-14, cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False}
    )
    assert beta == pytest.approx(expected.params, abs=1e-8)
    found = cluster_covariance(design, labels, np.ones(120), beta, clusters)
    assert found == pytest.approx(expected.cov_params() * 40 / 39, rel=1e-6)


def test_many_weights_at_once_equal_one_at_a_time():
    generator = np.random.default_rng(3)
    design = np.column_stack([np.ones(50), generator.normal(size=50)])
    labels, weights = generator.random(50), generator.integers(0, 4, (6, 50)).astype(float)
    together = fit(design, labels, weights)
    for row, each in zip(weights, together, strict=True):
        assert each == pytest.approx(fit(design, labels, row), abs=1e-9)


@pytest.mark.parametrize(("n", "beta0", "beta1"), [(40, 0.4, 1.0), (80, 1.2, 1.5)])
def test_the_interval_covers_and_the_error_is_true(n, beta0, beta1):
    """200 simulated comparisons: coverage of a nominal 95 % within 3.3 standard errors of it, and the mean
    bootstrap error within a fifth of the spread of the estimates.
    """
    generator = np.random.default_rng(4)
    truth = 100 / (1 + np.exp(-beta0))
    runs = [length_adjusted(*draw(generator, n, beta0, beta1), names(n), resamples=150) for _ in range(200)]
    covered = np.mean([run.ci_low <= truth <= run.ci_high for run in runs])
    spread = np.std([run.win_rate for run in runs], ddof=1)
    assert 0.90 <= covered <= 1.0
    assert np.mean([run.standard_error for run in runs]) == pytest.approx(spread, rel=0.2)


def test_an_effect_of_length_alone_is_taken_out():
    scores, longer = draw(np.random.default_rng(5), 800, 0.0, 3.0, shift=1.0)
    found = length_adjusted(scores, longer, names(800), resamples=100)
    assert scores.mean() > 0.75
    assert found.ci_low < 50 < found.ci_high


def test_swapped_arms_give_the_complement():
    scores, longer = draw(np.random.default_rng(6), 100, 0.5, 1.0)
    found = length_adjusted(scores, longer, names(100))
    swapped = length_adjusted(1 - scores, -longer, names(100))
    assert swapped.win_rate == pytest.approx(100 - found.win_rate, abs=1e-8)
    assert swapped.ci_low == pytest.approx(100 - found.ci_high, abs=1e-6)


def test_repeating_every_prompt_does_not_shrink_the_error():
    scores, longer = draw(np.random.default_rng(7), 60, 0.5, 1.0)
    once = length_adjusted(scores, longer, names(60))
    twice = length_adjusted(np.tile(scores, 2), np.tile(longer, 2), names(60) * 2)
    assert twice.standard_error == pytest.approx(once.standard_error, rel=0.1)


def test_where_length_cannot_be_told_from_quality_there_is_no_figure():
    _, longer = draw(np.random.default_rng(8), 40, 0.0, 0.0)
    for scores in (np.ones(40), (longer > 0).astype(float)):
        found = length_adjusted(scores, longer, names(40), resamples=50)
        assert (found.win_rate, found.ci_low) == (None, None)
        assert "no finite fit" in found.reason


@pytest.mark.parametrize(("longer", "reason"), [([5.0] * 20, "same amount"), ([1.0, 2.0], "2 prompts")])
def test_undefined_says_why(longer, reason):
    found = length_adjusted(np.full(len(longer), 0.5), np.asarray(longer), names(len(longer)))
    assert found.win_rate is None
    assert reason in found.reason
