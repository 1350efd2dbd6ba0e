"""The interval of a difference of two paired rates: its posterior under a Dirichlet(1/2) prior."""

from __future__ import annotations

import functools

import numpy as np

from lora_eval.stats.estimate import Values

_NODES = 256


@functools.lru_cache(maxsize=4096)
def dirichlet_interval(wins: float, losses: float, ties: float, level: float = 0.95) -> tuple[float, float]:
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


def _quantile(wins: float, losses: float, ties: float, probability: float) -> float:
    from scipy.optimize import brentq

    def excess(x: float) -> float:
        return 1.0 - probability_above(x, wins, losses, ties) - probability

    return float(brentq(excess, -1.0, 1.0, xtol=1e-13, rtol=8.9e-16))


def probability_above(x: float, wins: float, losses: float, ties: float) -> float:
    """Return the posterior probability that p01 - p10 is above x."""
    return _tail(x, wins, losses, ties) if x >= 0 else 1.0 - _tail(-x, losses, wins, ties)


def _tail(x: float, wins: float, losses: float, ties: float) -> float:
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
def _support(discordant: float, concordant: float) -> tuple[float, float]:
    """Where all but 1e-15 of the mass of s lies: nodes are not wasted on the rest at large n."""
    from scipy.special import betainccinv, betaincinv

    a, b = discordant + 1.0, concordant + 1.0
    return float(betaincinv(a, b, 5e-16)), float(betainccinv(a, b, 5e-16))


@functools.cache
def _legendre() -> tuple[Values, Values]:
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return (nodes + 1.0) / 2.0, weights / 2.0
