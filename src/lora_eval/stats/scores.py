"""Scores: cluster-robust t for the mean of paired differences.

Items of one cluster (questions on one passage, both turns of a conversation, repeats of one prompt) depend
on each other; taking them as independent doubles the false alarms on MT-Bench (docs/statistics.md). With
one item in each cluster this is the paired t test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lora_eval.errors import InputError
from lora_eval.stats.estimate import Estimate, Values, aligned, check_level, counts, empty
from lora_eval.stats.power import normal_mde


@dataclass(frozen=True, slots=True)
class ClusterMean:
    """A weighted mean with its cluster-robust standard error, over `clusters` clusters.

    `standard_error` is None for fewer than two clusters.
    """

    mean: float
    standard_error: float | None
    clusters: int


def cluster_mean(
    values: Values, weights: Values | None = None, clusters: Sequence[str] | None = None
) -> ClusterMean:
    """Return sum(w d) / sum(w) and its standard error, clusters being the independent units.

    SE^2 = G/(G-1) sum_g (sum_{i in g} w_i (d_i - mean))^2 / (sum w)^2 (Miller 2024, arXiv 2411.00640, with
    the small-sample factor). Reference: `statsmodels` WLS on a constant with `cov_type="cluster"`.
    """
    w = np.ones(len(values)) if weights is None else weights
    labels = np.arange(len(values)) if clusters is None else np.unique(list(clusters), return_inverse=True)[1]
    total = float(w.sum())
    # Sums that do not depend on the order of the items, so that a shuffled run gives the same digits.
    mean = math.fsum(w * values) / total
    groups = int(labels.max()) + 1
    if groups < 2:
        return ClusterMean(mean, None, groups)
    residual = np.bincount(labels, weights=w * (values - mean), minlength=groups)
    squared = math.fsum(residual**2) * groups / (groups - 1)
    return ClusterMean(mean, math.sqrt(squared) / total, groups)


def paired_scores(
    a: ArrayLike, b: ArrayLike, clusters: Sequence[str] | None = None, level: float = 0.95
) -> Estimate:
    """Return the mean of b minus a, with the t interval and test of G - 1 degrees of freedom.

    Raises:
        InputError: the arrays or the cluster labels do not align.
    """
    first, second = aligned(a, b)
    check_level(level)
    n = len(first)
    check_clusters(clusters, n)
    if n == 0:
        return empty(level, t_method(0, clustered=clusters is not None))
    higher, lower, ties = counts(first, second)
    found = cluster_mean(second - first, clusters=clusters)
    low, high, p_value, reason = t_interval(found, level)
    return Estimate(
        n=n,
        difference=found.mean,
        ci_low=low,
        ci_high=high,
        level=level,
        p_value=p_value,
        method=t_method(found.clusters, clustered=found.clusters < n),
        higher=higher,
        lower=lower,
        ties=ties,
        mde=normal_mde(found.standard_error, level) if found.standard_error else None,
        reason=reason,
    )


def t_interval(
    found: ClusterMean, level: float
) -> tuple[float | None, float | None, float | None, str | None]:
    """Return low, high, p-value and, where they are undefined, the reason."""
    from scipy.special import stdtr, stdtrit

    if found.standard_error is None:
        unit = "item" if found.clusters == 1 else "items"
        return None, None, None, f"{found.clusters} independent {unit}: the spread is unknown"
    if found.standard_error == 0.0:
        if found.mean == 0.0:
            return None, None, 1.0, "no item's score differs, so the spread is unknown"
        return None, None, None, "every item's score differs by the same amount, so the spread is unknown"
    freedom = found.clusters - 1
    half = float(stdtrit(freedom, 0.5 + level / 2.0)) * found.standard_error
    p_value = 2.0 * float(stdtr(freedom, -abs(found.mean) / found.standard_error))
    return found.mean - half, found.mean + half, p_value, None


def t_method(clusters: int, *, clustered: bool) -> str:
    """Return the method's name as the record and the reports show it."""
    return f"cluster-robust t ({clusters} clusters)" if clustered else "paired t"


def check_clusters(clusters: Sequence[str] | None, n: int) -> None:
    """InputError where there is not one label for each item."""
    if clusters is not None and len(clusters) != n:
        raise InputError(f"clusters: expected one label for each of {n} items, got {len(clusters)}")
