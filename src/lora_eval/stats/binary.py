"""Right-or-wrong items: exact test and Dirichlet(1/2) interval of the paired difference.

Only the items on which the arms disagree carry information about the difference: `wins` (b right, a wrong)
and `losses` (a right, b wrong). The interval is used at every n: in simulation the normal interval covers
69 % instead of 95 % at n = 20 and accuracy 0.9, and has no width in a third of the runs (docs/statistics.md).

Items in clusters (questions on one passage) take the exact sign-flip test over clusters, and the same
interval at the number of independent items that they are worth.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lora_eval.errors import InputError
from lora_eval.stats.differences import (
    Differences,
    Method,
    estimate_differences,
    number_clusters,
    robust_mean,
)
from lora_eval.stats.dirichlet import dirichlet_interval
from lora_eval.stats.estimate import Estimate, Values, aligned, check_level, counts, empty
from lora_eval.stats.laws import DirichletLaw
from lora_eval.stats.power import mcnemar_mde
from lora_eval.stats.resampling import exact_sign_flip

__all__ = [
    "CLUSTERED",
    "METHOD",
    "dirichlet_interval",
    "effective_n",
    "mcnemar_exact",
    "mcnemar_mid_p",
    "paired_binary",
]
METHOD = "exact McNemar; Dirichlet(1/2) interval"
CLUSTERED = "exact sign-flip by cluster; Dirichlet(1/2) interval at the effective n"


def paired_binary(
    a: ArrayLike,
    b: ArrayLike,
    level: float = 0.95,
    clusters: Sequence[str] | None = None,
    *,
    method: Method = "auto",
) -> Estimate:
    """Return b minus a for items that are 0 or 1.

    With `method` `permutation` it is the same estimate: both tests are the exact sign-flip test already.

    Raises:
        InputError: a value is neither 0 nor 1, arrays or labels do not align, or a resampling method has too
            few independent items.
    """
    first, second = aligned(a, b)
    check_level(level)
    if not (np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()):
        raise InputError("right-or-wrong values must be 0 or 1; use paired_scores for other scores")
    labels = number_clusters(clusters, len(first))
    if not len(first):
        return empty(level, METHOD)
    if method != "auto":
        found = Differences(first, second, second - first, np.ones(len(first)), labels)
        resampled = estimate_differences(found, level, method)
        if method == "bootstrap":
            return resampled
    if int(labels.max()) + 1 < len(first):
        return _clustered(first, second, labels, level)
    wins, losses, ties = counts(first, second)
    low, high = dirichlet_interval(wins, losses, ties, level)
    return Estimate(
        n=len(first),
        difference=(wins - losses) / len(first),
        ci_low=low,
        ci_high=high,
        level=level,
        p_value=mcnemar_exact(wins, losses),
        method=METHOD,
        higher=wins,
        lower=losses,
        ties=ties,
        mde=mcnemar_mde(len(first), wins + losses, level),
        p_mid=mcnemar_mid_p(wins, losses),
        law=DirichletLaw(wins, losses, ties),
    )


def _clustered(first: Values, second: Values, labels: NDArray[np.int64], level: float) -> Estimate:
    """The estimate of items in clusters; one cluster bounds nothing."""
    wins, losses, ties = counts(first, second)
    n, units = len(first), int(labels.max()) + 1
    sums = np.rint(np.bincount(labels, weights=second - first)).astype(np.int64)
    p_value, p_mid = exact_sign_flip(sums)
    worth = effective_n(second - first, labels, level)
    share = worth / n if worth is not None else None
    law = DirichletLaw(wins * share, losses * share, ties * share) if share is not None else None
    low, high = law.interval(level) if law else (None, None)
    return Estimate(
        n=n,
        difference=(wins - losses) / n,
        ci_low=low,
        ci_high=high,
        level=level,
        p_value=p_value if law else None,
        method=f"{CLUSTERED} ({units} clusters)",
        higher=wins,
        lower=losses,
        ties=ties,
        mde=mcnemar_mde(worth, (wins + losses) * share, level) if worth and share else None,
        reason=None if law else "1 independent item: the spread is unknown",
        p_mid=p_mid if law else None,
        clusters=units,
        effective_n=worth,
        law=law,
    )


def effective_n(differences: Values, labels: NDArray[np.int64], level: float = 0.95) -> float | None:
    """Return how many independent items give the same variance, never more than there are.

    n / deff * (t_{n-1} / t_{G-1})^2 with the design effect deff = cluster-robust variance over that of
    independent items, at least 1 (Korn and Graubard 1998, Survey Methodology 24:193, there for one rate).
    Where no difference varies deff is unknown, and each cluster counts as one item. None for one cluster.
    """
    from scipy.special import stdtrit

    n, groups = len(differences), int(labels.max()) + 1
    if groups < 2:
        return None
    ones = np.ones(n)
    plain = robust_mean(differences, ones, np.arange(n)).standard_error or 0.0
    robust = robust_mean(differences, ones, labels).standard_error or 0.0
    if plain == 0.0:
        return float(groups)
    tails = 0.5 + level / 2.0
    freedom = float((stdtrit(n - 1, tails) / stdtrit(groups - 1, tails)) ** 2)
    return n * freedom / max(1.0, (robust / plain) ** 2)


def mcnemar_exact(wins: int, losses: int) -> float:
    """Return the two-sided exact p-value: wins ~ Binomial(wins + losses, 1/2). 1 where no item disagrees.

    Reference: `statsmodels.stats.contingency_tables.mcnemar(exact=True)`, `scipy.stats.binomtest`.
    """
    return min(1.0, 2.0 * _half_tail(min(wins, losses), wins + losses))


def mcnemar_mid_p(wins: int, losses: int) -> float:
    """Return the mid-p value: what is as probable as what was seen counts half. 1 where no item disagrees.

    Less conservative than the exact test and rarely above the nominal level (Fagerland, Lydersen and
    Laake 2013, BMC Medical Research Methodology 13:91).
    """
    changed, smaller = wins + losses, min(wins, losses)
    if changed == 0:
        return 1.0
    below = _half_tail(smaller - 1, changed)
    here = _half_tail(smaller, changed) - below
    return 1.0 - 0.5 * here if wins == losses else min(1.0, 2.0 * below + here)


def _half_tail(k: int, n: int) -> float:
    """P(X <= k) for X ~ Binomial(n, 1/2). From scipy.special: scipy.stats takes a second to import."""
    from scipy.special import betainc

    if k < 0:
        return 0.0
    return 1.0 if k >= n else float(betainc(n - k, k + 1, 0.5))
