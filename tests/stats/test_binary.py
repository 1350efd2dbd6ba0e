"""Right-or-wrong items: parity with SciPy and statsmodels, and what must hold for every table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar

from lora_eval.errors import InputError
from lora_eval.stats import dirichlet_interval, mcnemar_exact, mcnemar_mid_p, paired_binary

TABLES = [(0, 0, 20), (1, 0, 0), (5, 2, 93), (30, 10, 160), (3, 17, 0), (400, 300, 619), (7000, 6800, 200)]
rights = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@pytest.mark.parametrize(("wins", "losses", "ties"), TABLES)
def test_mcnemar_equals_statsmodels_and_scipy(wins, losses, ties):
    table = [[ties, losses], [wins, 0]]
    assert mcnemar_exact(wins, losses) == pytest.approx(mcnemar(table, exact=True).pvalue, abs=1e-12)
    if wins + losses:
        assert mcnemar_exact(wins, losses) == pytest.approx(
            scipy_stats.binomtest(wins, wins + losses).pvalue, abs=1e-12
        )


def test_mcnemar_of_the_published_example():
    """Fagerland, Lydersen and Laake 2013, table 1: (1, 7) discordant, exact 0.070, mid-p 0.039."""
    assert mcnemar_exact(1, 7) == pytest.approx(0.0703125)
    assert mcnemar_mid_p(1, 7) == pytest.approx(0.0390625)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (4, 4), (9, 2), (2, 9), (0, 6)])
def test_mid_p_counts_half_of_what_was_seen(wins, losses):
    n = wins + losses
    pmf = scipy_stats.binom.pmf(np.arange(n + 1), n, 0.5)
    seen = pmf[wins]
    expected = pmf[pmf < seen * (1 - 1e-9)].sum() + 0.5 * pmf[np.isclose(pmf, seen)].sum()
    if n == 0:
        expected = 1.0  # nothing was tested
    assert mcnemar_mid_p(wins, losses) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("wins", "losses", "ties"), TABLES)
def test_interval_equals_a_large_draw(wins, losses, ties):
    draws = np.random.default_rng(1).dirichlet([wins + 0.5, losses + 0.5, ties + 1.0], size=400_000)
    low, high = dirichlet_interval(wins, losses, ties)
    difference = draws[:, 0] - draws[:, 1]
    assert (difference <= low).mean() == pytest.approx(0.025, abs=0.0015)
    if (wins, losses, ties) != (1, 0, 0):  # there the upper bound is set to 1
        assert (difference >= high).mean() == pytest.approx(0.025, abs=0.0015)


@pytest.mark.parametrize(("wins", "losses", "ties"), [(5, 2, 93), (0, 3, 17), (30, 10, 160)])
def test_interval_equals_a_second_quadrature(wins, losses, ties):
    """Integrated over u instead of s, with SciPy's adaptive rule."""
    from scipy.integrate import quad

    s = scipy_stats.beta(wins + losses + 1, ties + 1)
    u = scipy_stats.beta(wins + 0.5, losses + 0.5)

    def cdf(x):
        def beyond(v):
            return u.pdf(v) * s.sf(x / (2 * v - 1))

        if x > 0:
            return 1 - quad(beyond, 0.5, 1, epsabs=1e-11, limit=500)[0]
        return quad(beyond, 0, 0.5, epsabs=1e-11, limit=500)[0]

    low, high = dirichlet_interval(wins, losses, ties)
    assert cdf(low) == pytest.approx(0.025, abs=1e-7)
    assert cdf(high) == pytest.approx(0.975, abs=1e-7)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_interval_holds_the_estimate_and_mirrors(wins, losses, ties):
    n = wins + losses + ties
    if n == 0:
        return
    low, high = dirichlet_interval(wins, losses, ties)
    assert -1 <= low <= (wins - losses) / n <= high <= 1
    assert low < high
    assert dirichlet_interval(losses, wins, ties) == (-high, -low)


@given(rights, st.randoms(use_true_random=False))
def test_swapping_arms_and_shuffling_items(pairs, random):
    a, b = ([float(pair[i]) for pair in pairs] for i in (0, 1))
    forward, backward = paired_binary(a, b), paired_binary(b, a)
    assert (backward.difference, backward.ci_low, backward.ci_high) == (
        -forward.difference,
        -forward.ci_high,
        -forward.ci_low,
    )
    assert (backward.p_value, backward.mde) == (forward.p_value, forward.mde)
    random.shuffle(pairs)
    assert paired_binary([float(p[0]) for p in pairs], [float(p[1]) for p in pairs]) == forward


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_identical_arms_differ_by_exactly_nothing(values):
    found = paired_binary(values, values)
    assert found.difference == 0
    assert found.p_value == 1
    assert found.ci_low == -found.ci_high < 0  # no change seen is not no change possible
    assert found.mde is None


def test_empty_and_wrong_values():
    nothing = paired_binary([], [])
    assert (nothing.n, nothing.difference, nothing.ci_low, nothing.p_value) == (0, None, None, None)
    assert "no item" in nothing.reason
    with pytest.raises(InputError, match="0 or 1"):
        paired_binary([0, 0.5], [1, 1])
    with pytest.raises(InputError, match="equally long"):
        paired_binary([0], [1, 1])
    with pytest.raises(InputError, match="finite"):
        paired_binary([0, float("nan")], [1, 1])
    with pytest.raises(InputError, match="level"):
        paired_binary([0], [1], level=95)


def simulate(n, p_a, p_b, rho, runs, seed):
    """Share of runs whose interval covers p_b - p_a, and in which the exact test is below 0.05."""
    rng = np.random.default_rng(seed)
    normal = scipy_stats.norm.ppf([p_a, p_b])
    shared = rng.standard_normal((runs, n))
    noise = rng.standard_normal((2, runs, n))
    latent = [np.sqrt(rho) * shared + np.sqrt(1 - rho) * noise[i] for i in (0, 1)]
    a, b = latent[0] < normal[0], latent[1] < normal[1]
    wins, losses = (b & ~a).sum(1), (a & ~b).sum(1)
    covered = alarms = 0
    for w, lost in zip(wins, losses, strict=True):
        low, high = dirichlet_interval(int(w), int(lost), int(n - w - lost))
        covered += low <= p_b - p_a <= high
        alarms += mcnemar_exact(int(w), int(lost)) < 0.05
    return covered / runs, alarms / runs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "p_a", "p_b", "rho"),
    [(20, 0.6, 0.65, 0.8), (20, 0.9, 0.93, 0.9), (80, 0.9, 0.93, 0.9), (200, 0.9, 0.93, 0.9)],
)
def test_interval_covers(n, p_a, p_b, rho):
    """The normal interval covers 0.69 in the second row (docs/statistics.md)."""
    covered, _ = simulate(n, p_a, p_b, rho, 2000, seed=n)
    assert covered > 0.93


@pytest.mark.slow
@pytest.mark.parametrize(("n", "p"), [(20, 0.5), (200, 0.5), (200, 0.95)])
def test_false_alarms_stay_below_the_level(n, p):
    covered, alarms = simulate(n, p, p, 0.7, 2000, seed=n)
    assert alarms < 0.05
    assert covered > 0.93


@pytest.mark.parametrize(("wins", "losses"), [(289, 23), (23, 289), (0, 60), (5, 1), (1, 0), (3000, 2900)])
def test_tiny_p_values_keep_their_digits(wins, losses):
    expected = scipy_stats.binomtest(wins, wins + losses).pvalue
    assert mcnemar_exact(wins, losses) == pytest.approx(expected, rel=1e-10)


def test_statistics_do_not_import_scipy_stats(run_python):
    """A second of start-up on each `report`."""
    code = (
        "import sys; from lora_eval.stats import *; paired_binary([0, 1, 1], [1, 1, 0]);"
        "paired_scores([1, 2, 3], [1, 3, 5]); holm([0.1]); sys.exit('scipy.stats' in sys.modules)"
    )
    assert run_python("-c", code).status == 0
