"""Scores: cluster-robust t for the mean of paired differences.

Items of one cluster (questions on one passage, both turns of a conversation, repeats of one prompt) depend
on each other; taking them as independent doubles the false alarms on MT-Bench (docs/statistics.md). With
one item in each cluster this is the paired t test.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from lora_eval.stats.differences import (
    Centers,
    ClusterMean,
    Differences,
    Method,
    cluster_mean,
    describe,
    estimate_differences,
    number_clusters,
)
from lora_eval.stats.estimate import Estimate, aligned, check_level, empty

__all__ = ["ClusterMean", "cluster_mean", "paired_scores"]


def paired_scores(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    *,
    method: Method = "auto",
    runs: Centers | None = None,
) -> Estimate:
    """Return the mean of b minus a, with the t interval and test of G - 1 degrees of freedom.

    `runs` are the differences of the training runs over which the values of an arm were averaged.

    Raises:
        InputError: arrays or labels do not align, or a resampling method has too few independent items.
    """
    first, second = aligned(a, b)
    check_level(level)
    labels = number_clusters(clusters, len(first))
    if not len(first):
        return empty(level, describe(None))
    found = Differences(first, second, second - first, np.ones(len(first)), labels)
    return estimate_differences(found, level, method, runs)
