"""Paired differences of items in clusters: their mean, its law, and the estimate made from them.

Scores and likelihoods share this: r = sum(amounts) / sum(weights) is the mean difference of scores (weights
1) or the difference of log-likelihoods in nats for each word or byte. Clusters are the independent units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lora_eval.errors import InputError
from lora_eval.records import VariancePart
from lora_eval.stats.estimate import Estimate, Values, counts
from lora_eval.stats.laws import Law, Scale, ScaledLaw, StudentLaw, to_metric
from lora_eval.stats.power import normal_mde, power_quantile
from lora_eval.stats.resampling import bootstrap_interval, check_units, permutation_p, unit_sums

Method = Literal["auto", "bootstrap", "permutation"]
Source = Literal["runs of a", "runs of b"]
# Differences of each training run of an arm, on the scale of r.
Centers = Mapping[Source, Sequence[float]]


@dataclass(frozen=True, slots=True)
class ClusterMean:
    """A weighted mean with its cluster-robust standard error, over `clusters` clusters.

    `standard_error` is None for fewer than two clusters.
    """

    mean: float
    standard_error: float | None
    clusters: int


@dataclass(frozen=True, slots=True)
class Differences:
    """The differences of n items: `amounts` and `weights` as above, `labels` numbers each item's cluster.

    `first` and `second` are the two arms' values, `unit` takes r to the metric (`laws.ScaledLaw`).
    """

    first: Values
    second: Values
    amounts: Values
    weights: Values
    labels: NDArray[np.int64]
    unit: float = 1.0
    scale: Scale = "mean"

    @property
    def units(self) -> int:
        """The number of independent units."""
        return int(self.labels.max()) + 1

    @property
    def clustered(self) -> bool:
        """Whether some items depend on each other."""
        return self.units < len(self.labels)


def number_clusters(clusters: Sequence[str] | None, n: int) -> NDArray[np.int64]:
    """Return each item's cluster as a number from 0; without clusters every item is its own.

    Raises:
        InputError: there is not one label for each item.
    """
    if clusters is None:
        return np.arange(n)
    if len(clusters) != n:
        raise InputError(f"clusters: expected one label for each of {n} items, got {len(clusters)}")
    return np.unique(list(clusters), return_inverse=True)[1].astype(np.int64)


def cluster_mean(
    values: Values, weights: Values | None = None, clusters: Sequence[str] | None = None
) -> ClusterMean:
    """Return sum(w d) / sum(w) and its standard error, clusters being the independent units.

    SE^2 = G/(G-1) sum_g (sum_{i in g} w_i (d_i - mean))^2 / (sum w)^2 (Miller 2024, arXiv 2411.00640, with
    the small-sample factor). Reference: `statsmodels` WLS on a constant with `cov_type="cluster"`.
    """
    w = np.ones(len(values)) if weights is None else weights
    return robust_mean(w * values, w, number_clusters(clusters, len(values)))


def estimate_differences(
    found: Differences, level: float, method: Method = "auto", runs: Centers | None = None
) -> Estimate:
    """Return the estimate: t over clusters (and training runs), or a resampling method.

    `bootstrap` takes the BCa interval and the sign-flip test, `permutation` the sign-flip test and the t
    interval.

    Raises:
        InputError: a resampling method with fewer than 200 independent units, or with training runs.
    """
    runs = runs or {}
    mean = robust_mean(found.amounts, found.weights, found.labels)
    law, p_value, reason = _law(mean, runs)
    low, high = law.interval(level) if law else (None, None)
    if method != "auto":
        low, high, p_value, reason = _resampled(found, level, method, runs, (low, high), reason)
    higher, lower, ties = counts(found.first, found.second)
    ratio = found.scale == "perplexity"
    return Estimate(
        n=len(found.labels),
        difference=to_metric(mean.mean, found.unit, found.scale),
        ci_low=_scaled(found, low),
        ci_high=_scaled(found, high),
        level=level,
        p_value=p_value,
        method=describe(found, method, runs),
        higher=higher,
        lower=lower,
        ties=ties,
        mde=_scaled(found, detectable(law, level)),
        ratio=math.exp(mean.mean) if ratio else None,
        ratio_low=math.exp(low) if ratio and low is not None else None,
        ratio_high=math.exp(high) if ratio and high is not None else None,
        reason=reason,
        clusters=found.units if found.clustered else None,
        run_differences=tuple(
            to_metric(center, found.unit, found.scale)
            for center in runs.get("runs of b", runs.get("runs of a", ()))
        ),
        law=_in_units(found, law) if method != "bootstrap" else None,
        skewness=_skewness(found, mean.mean) if law else None,
    )


def describe(found: Differences | None, method: Method = "auto", runs: Centers | None = None) -> str:
    """Return the method's name as the record and the reports show it (None: there are no items)."""
    clustered = found is not None and found.clustered
    interval = f"cluster-robust t ({found.units} clusters)" if found and clustered else "paired t"
    if found and found.scale != "mean":
        interval = f"{METHOD_PREFIX}, {interval}"
    by = "by cluster" if clustered else "by item"
    if method == "bootstrap":
        prefix = f"{METHOD_PREFIX}, " if found and found.scale != "mean" else ""
        return f"{prefix}BCa bootstrap interval and sign-flip permutation test {by}"
    if method == "permutation":
        return f"{interval} interval; sign-flip permutation test {by}"
    counted = [f"{len(centers)} training runs" for centers in (runs or {}).values()]
    return " and ".join([interval, *counted])


METHOD_PREFIX = "weighted log ratio"


def robust_mean(amounts: Values, weights: Values, labels: NDArray[np.int64]) -> ClusterMean:
    """Return `cluster_mean` of amounts = weight times value, each cluster having a number from 0."""
    total = float(weights.sum())
    # Sums that do not depend on the order of the items, so that a shuffled run gives the same digits.
    mean = math.fsum(amounts) / total
    groups = int(labels.max()) + 1
    if groups < 2:
        return ClusterMean(mean, None, groups)
    residual = np.bincount(labels, weights=amounts - weights * mean, minlength=groups)
    squared = math.fsum(residual**2) * groups / (groups - 1)
    return ClusterMean(mean, math.sqrt(squared) / total, groups)


def _law(mean: ClusterMean, runs: Centers) -> tuple[StudentLaw | None, float | None, str | None]:
    """The law, the p-value of no difference, and the reason where there is no law."""
    if mean.standard_error is None:
        unit = "item" if mean.clusters == 1 else "items"
        return None, None, f"{mean.clusters} independent {unit}: the spread is unknown"
    items = VariancePart(
        source="items", variance=mean.standard_error**2, degrees_of_freedom=mean.clusters - 1
    )
    parts = (items, *(_run_part(source, centers) for source, centers in runs.items()))
    law = StudentLaw(mean.mean, parts)
    if law.standard_error > 0.0:
        return law, law.p_two_sided(), None
    if mean.mean == 0.0:
        return None, 1.0, "no item's score differs, so the spread is unknown"
    return None, None, "every item's score differs by the same amount, so the spread is unknown"


def _skewness(found: Differences, mean: float) -> float | None:
    """Fisher's skewness m3 / m2^1.5 of what each cluster adds to the mean; None where the items do not vary.

    Reference: `scipy.stats.skew`.
    """
    sums = np.bincount(found.labels, weights=found.amounts - found.weights * mean)
    square = math.fsum(sums**2) / len(sums)
    return math.fsum(sums**3) / len(sums) / square**1.5 if square > 0.0 else None


def _run_part(source: Source, centers: Sequence[float]) -> VariancePart:
    """The variance of the mean of K training runs: s^2 / K, with K - 1 degrees of freedom."""
    variance = float(np.var(centers, ddof=1)) / len(centers)
    return VariancePart(source=source, variance=variance, degrees_of_freedom=len(centers) - 1)


def _resampled(
    found: Differences,
    level: float,
    method: Method,
    runs: Centers,
    interval: tuple[float | None, float | None],
    reason: str | None,
) -> tuple[float | None, float | None, float | None, str | None]:
    """Low, high, p-value and reason of a resampling method, on the scale of r."""
    refused = check_units(found.units, method)
    if refused or runs:
        raise InputError(refused or f"--method {method} knows no training runs; several of them need auto")
    sums, weights = unit_sums(found.amounts, found.weights, found.labels)
    p_value = permutation_p(sums)
    if method == "permutation":
        return *interval, p_value, reason
    bounds = bootstrap_interval(sums, weights, level)
    if bounds is None:
        return None, None, p_value, reason
    return *bounds, p_value, None


def detectable(law: StudentLaw | None, level: float) -> float | None:
    """Return the smallest difference found with power 0.8, on the law's scale."""
    if law is None:
        return None
    if len(law.parts) == 1:
        return normal_mde(law.standard_error, level)
    low, high = law.interval(level)
    return (high - low) / 2.0 + power_quantile() * law.standard_error


def _scaled(found: Differences, r: float | None) -> float | None:
    return None if r is None else to_metric(r, found.unit, found.scale)


def _in_units(found: Differences, law: StudentLaw | None) -> Law | None:
    return law if law is None or found.scale == "mean" else ScaledLaw(law, found.unit, found.scale)
