"""Right-or-wrong items: exact McNemar test and Dirichlet(1/2) interval of the paired difference.

Only the items on which the arms disagree carry information about the difference: `wins` (b right, a wrong)
and `losses` (a right, b wrong). The interval is used at every n: in simulation the normal interval covers
69 % instead of 95 % at n = 20 and accuracy 0.9, and has no width in a third of the runs (docs/statistics.md).
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import ArrayLike

from lora_eval.errors import InputError
from lora_eval.stats.estimate import Estimate, Values, aligned, check_level, counts, empty
from lora_eval.stats.power import mcnemar_mde

METHOD = "exact McNemar; Dirichlet(1/2) interval"
_NODES = 256


def paired_binary(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Estimate:
    """Return b minus a for items that are 0 or 1.

    Raises:
        InputError: a value is neither 0 nor 1, or the arrays do not align.
    """
    first, second = aligned(a, b)
    check_level(level)
    if not (np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()):
        raise InputError("right-or-wrong values must be 0 or 1; use paired_scores for other scores")
    n = len(first)
    if n == 0:
        return empty(level, METHOD)
    wins, losses, ties = counts(first, second)
    low, high = dirichlet_interval(wins, losses, ties, level)
    return Estimate(
        n=n,
        difference=(wins - losses) / n,
        ci_low=low,
        ci_high=high,
        level=level,
        p_value=mcnemar_exact(wins, losses),
        method=METHOD,
        higher=wins,
        lower=losses,
        ties=ties,
        mde=mcnemar_mde(n, wins + losses, level),
    )


def mcnemar_exact(wins: int, losses: int) -> float:
    """Return the two-sided exact p-value: wins ~ Binomial(wins + losses, 1/2). 1 where no item disagrees.

    Reference: `statsmodels.stats.contingency_tables.mcnemar(exact=True)`, `scipy.stats.binomtest`.
    """
    return min(1.0, 2.0 * _half_tail(min(wins, losses), wins + losses))


def mcnemar_mid_p(wins: int, losses: int) -> float:
    """Return the mid-p value: the exact one less half the probability of what was seen, on each side.

    Less conservative than the exact test and rarely above the nominal level (Fagerland, Lydersen and
    Laake 2013, BMC Medical Research Methodology 13:91).
    """
    changed, smaller = wins + losses, min(wins, losses)
    if changed == 0:
        return 1.0
    below = _half_tail(smaller - 1, changed)
    here = _half_tail(smaller, changed) - below
    return 1.0 - here if wins == losses else min(1.0, 2.0 * below + here)


def _half_tail(k: int, n: int) -> float:
    """P(X <= k) for X ~ Binomial(n, 1/2). From scipy.special: scipy.stats takes a second to import."""
    from scipy.special import betainc

    if k < 0:
        return 0.0
    return 1.0 if k >= n else float(betainc(n - k, k + 1, 0.5))


@functools.lru_cache(maxsize=4096)
def dirichlet_interval(wins: int, losses: int, ties: int, level: float = 0.95) -> tuple[float, float]:
    """Return the equal-tailed interval of p01 - p10, the cells having a Dirichlet(1/2, ..., 1/2) prior.

    Deterministic: the posterior is integrated numerically, nothing is drawn. Swapping wins and losses gives
    the mirrored interval, digit for digit. Where every item was won (or lost) the bound on that side is 1
    (or -1), as for the Jeffreys interval of one rate (Brown, Cai and DasGupta 2001), so that the interval
    always holds the estimate.
    """
    if losses > wins:
        low, high = dirichlet_interval(losses, wins, ties, level)
        return -high, -low
    tail = (1.0 - level) / 2.0
    high = 1.0 if losses == ties == 0 else _quantile(wins, losses, ties, 1.0 - tail)
    low = -high if wins == losses else _quantile(wins, losses, ties, tail)
    return low, high


def _quantile(wins: int, losses: int, ties: int, probability: float) -> float:
    from scipy.optimize import brentq

    def excess(x: float) -> float:
        return _cdf(x, wins, losses, ties) - probability

    return float(brentq(excess, -1.0, 1.0, xtol=1e-13, rtol=8.9e-16))


def _cdf(x: float, wins: int, losses: int, ties: int) -> float:
    return 1.0 - _tail(x, wins, losses, ties) if x >= 0 else _tail(-x, losses, wins, ties)


def _tail(x: float, wins: int, losses: int, ties: int) -> float:
    """P(p01 - p10 > x) for x >= 0.

    p01 = s u and p10 = s (1 - u) with independent s ~ Beta(wins + losses + 1, ties + 1), the two concordant
    cells being merged, and u ~ Beta(wins + 1/2, losses + 1/2). So the tail is the integral over s from x to 1
    of f(s) P(u > (1 + x/s) / 2). Substituting s = low + (high - low) t^2 makes the half-integer power at
    s = x a polynomial, for which Gauss-Legendre nodes are exact to rounding.
    """
    from scipy.special import betainc, betaln, xlog1py, xlogy

    changed = wins + losses
    start, end = _support(changed, ties)
    start = max(x, start)
    if start >= end:
        return 0.0
    nodes, weights = _legendre()
    s = start + (end - start) * nodes**2
    jacobian = 2.0 * (end - start) * nodes
    beyond = betainc(losses + 0.5, wins + 0.5, np.clip(0.5 * (1.0 - x / s), 0.0, 1.0))
    density = np.exp(xlogy(changed, s) + xlog1py(ties, -s) - betaln(changed + 1.0, ties + 1.0))
    return float(np.sum(weights * jacobian * density * beyond))


@functools.lru_cache(maxsize=4096)
def _support(discordant: int, concordant: int) -> tuple[float, float]:
    """Where all but 1e-15 of the mass of s lies: nodes are not wasted on the rest at large n."""
    from scipy.special import betainccinv, betaincinv

    a, b = discordant + 1.0, concordant + 1.0
    return float(betaincinv(a, b, 5e-16)), float(betainccinv(a, b, 5e-16))


@functools.cache
def _legendre() -> tuple[Values, Values]:
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return (nodes + 1.0) / 2.0, weights / 2.0
