"""Perplexity and bits per byte: token-weighted ratio of two arms, paired by document.

Each document gives a negative log-likelihood (nats) under both arms and a weight (its words, bytes or
tokens). Both figures come from r = sum(nll_b - nll_a) / sum(weight), the difference in nats for each unit:
the ratio of perplexities is exp(r), the difference of bits is r / ln 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from numpy.typing import ArrayLike

from lora_eval.errors import InputError
from lora_eval.stats.estimate import Estimate, aligned, check_level, counts, empty
from lora_eval.stats.scores import check_clusters, cluster_mean, t_interval

Scale = Literal["perplexity", "bits"]


def paired_likelihoods(
    nll_a: ArrayLike,
    nll_b: ArrayLike,
    weights: ArrayLike,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    scale: Scale = "perplexity",
) -> Estimate:
    """Return b minus a as a difference of perplexities or of bits, and for perplexities their ratio.

    The interval is the cluster-robust t interval of r (a ratio estimator: documents count by their weight),
    taken to the metric's scale: ratio exp(r), difference perplexity_a (exp(r) - 1). Perplexity_a is the
    measured value, so the difference's interval bounds the change on documents as hard as these.

    Raises:
        InputError: arrays do not align, or a weight is not above zero.
    """
    first, second = aligned(nll_a, nll_b)
    w = aligned(weights, weights)[0]
    check_level(level)
    n = len(first)
    check_clusters(clusters, n)
    if len(w) != n or (w <= 0).any():
        raise InputError(f"weights: expected {n} values above zero, one for each document")
    if n == 0:
        return empty(level, _method(0, clustered=clusters is not None))
    higher, lower, ties = counts(first, second)
    found = cluster_mean((second - first) / w, w, clusters)
    low, high, p_value, reason = t_interval(found, level)
    unit = math.exp(math.fsum(first) / float(w.sum())) if scale == "perplexity" else 1.0 / math.log(2.0)
    error = found.standard_error
    return Estimate(
        n=n,
        difference=_scaled(found.mean, unit, scale),
        ci_low=_scaled(low, unit, scale),
        ci_high=_scaled(high, unit, scale),
        level=level,
        p_value=p_value,
        method=_method(found.clusters, clustered=found.clusters < n),
        higher=higher,
        lower=lower,
        ties=ties,
        mde=_mde(error, unit, level, scale) if error else None,
        ratio=math.exp(found.mean) if scale == "perplexity" else None,
        ratio_low=math.exp(low) if scale == "perplexity" and low is not None else None,
        ratio_high=math.exp(high) if scale == "perplexity" and high is not None else None,
        reason=reason,
    )


def _scaled(r: float | None, unit: float, scale: Scale) -> float | None:
    if r is None:
        return None
    return unit * math.expm1(r) if scale == "perplexity" else unit * r


def _mde(error: float, unit: float, level: float, scale: Scale) -> float:
    from lora_eval.stats.power import normal_mde

    smallest = normal_mde(error, level)
    return unit * math.expm1(smallest) if scale == "perplexity" else unit * smallest


def _method(clusters: int, *, clustered: bool) -> str:
    kind = f"cluster-robust t ({clusters} clusters)" if clustered else "paired t"
    return f"weighted log ratio, {kind}"
