"""Perplexity and bits per byte: token-weighted ratio of two arms, paired by document.

Each document gives a negative log-likelihood (nats) under both arms and a weight (its words, bytes or
tokens). Both figures come from r = sum(nll_b - nll_a) / sum(weight), the difference in nats for each unit:
the ratio of perplexities is exp(r), the difference of bits is r / ln 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from numpy.typing import ArrayLike

from lora_eval.errors import InputError
from lora_eval.stats.differences import (
    METHOD_PREFIX,
    Centers,
    Differences,
    Method,
    describe,
    estimate_differences,
    number_clusters,
)
from lora_eval.stats.estimate import Estimate, aligned, check_level, empty
from lora_eval.stats.laws import Scale

__all__ = ["METHOD_PREFIX", "Scale", "paired_likelihoods"]


def paired_likelihoods(
    nll_a: ArrayLike,
    nll_b: ArrayLike,
    weights: ArrayLike,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    scale: Scale = "perplexity",
    *,
    method: Method = "auto",
    runs: Centers | None = None,
) -> Estimate:
    """Return b minus a as a difference of perplexities or of bits, and for perplexities their ratio.

    The interval is the cluster-robust t interval of r (a ratio estimator: documents count by their weight),
    taken to the metric's scale: ratio exp(r), difference perplexity_a (exp(r) - 1). Perplexity_a is the
    measured value, so the difference's interval bounds the change on documents as hard as these. `runs` are
    the values of r of the training runs over which an arm's log-likelihoods were averaged.

    Raises:
        InputError: arrays do not align, a weight is not above zero, or a resampling method has too few
            independent documents.
    """
    first, second = aligned(nll_a, nll_b)
    w = aligned(weights, weights)[0]
    check_level(level)
    labels = number_clusters(clusters, len(first))
    if len(w) != len(first) or (w <= 0).any():
        raise InputError(f"weights: expected {len(first)} values above zero, one for each document")
    if not len(first):
        return empty(level, f"{METHOD_PREFIX}, {describe(None)}")
    perplexity = scale == "perplexity"
    unit = math.exp(math.fsum(first) / float(w.sum())) if perplexity else 1.0 / math.log(2.0)
    found = Differences(first, second, second - first, w, labels, unit, scale)
    return estimate_differences(found, level, method, runs)
