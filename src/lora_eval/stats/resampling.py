"""Distribution-free methods over independent units: sign flips and the bootstrap.

A unit is an item, or a cluster of items that depend on each other; each gives the sum of its weighted
differences. Under no difference the sign of each sum is a coin toss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lora_eval.errors import InputError
from lora_eval.stats.estimate import Values

FEWEST_UNITS = 200
RESAMPLES = 9_999
SEED = 20_241_107
_BATCH_VALUES = 4_000_000


def exact_sign_flip(sums: NDArray[np.int64]) -> tuple[float, float]:
    """Return the exact two-sided p-value and the mid-p value of whole-numbered sums of clusters.

    All 2^G assignments of signs are counted, by adding one cluster after the other to the distribution of
    the total, so nothing is drawn. With one item in each cluster this is the exact McNemar test; for clusters
    it holds asymptotically where only the mean is zero (Romano 1990, JASA 85:686).
    """
    changed = sums[sums != 0]
    if not len(changed):
        return 1.0, 1.0
    changed = changed // np.gcd.reduce(np.abs(changed))
    total = abs(int(changed.sum()))
    tails = np.ones(1)  # distribution of what the positive sums add up to
    for size in np.sort(np.abs(changed)):
        longer = np.zeros(len(tails) + int(size))
        longer[: len(tails)] += 0.5 * tails
        longer[int(size) :] += 0.5 * tails
        tails = longer
    seen = (len(tails) - 1 + total) // 2
    here, beyond = float(tails[seen]), math.fsum(tails[seen + 1 :])
    if total == 0:
        return 1.0, 1.0 - 0.5 * here
    return min(1.0, 2.0 * (here + beyond)), min(1.0, 2.0 * beyond + here)


def permutation_p(sums: Values) -> float:
    """Return the two-sided sign-flip p-value of sums of units, from 9,999 flips with a fixed seed.

    Reference: `scipy.stats.permutation_test(permutation_type="samples")`.
    """
    from scipy.stats import permutation_test

    if not sums.any():
        return 1.0
    found = permutation_test(
        (sums,),
        lambda x, axis: np.sum(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH_VALUES // len(sums)),
        rng=np.random.default_rng(SEED),
    )
    return float(found.pvalue)


def bootstrap_interval(sums: Values, weights: Values, level: float) -> tuple[float, float] | None:
    """Return the BCa interval of sum(sums) / sum(weights), whole units being drawn; None where all are equal.

    9,999 resamples with a fixed seed. Reference: `scipy.stats.bootstrap(method="BCa")` (Efron 1987, JASA
    82:171).
    """
    from scipy.stats import bootstrap

    if np.ptp(sums / weights) == 0.0:
        return None
    found = bootstrap(
        (sums, weights),
        lambda s, w, axis: np.sum(s, axis=axis) / np.sum(w, axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH_VALUES // len(sums)),
        confidence_level=level,
        method="BCa",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def check_units(units: int, method: str) -> str | None:
    """Return why `method` is refused for so few independent units, None where it is not."""
    if units >= FEWEST_UNITS:
        return None
    return (
        f"{units} independent items or clusters, and --method {method} needs {FEWEST_UNITS}: resampling "
        "fewer claims too much (docs/statistics.md)"
    )


def raise_refused(refused: Mapping[str, str]) -> None:
    """InputError that names every task on which the method is refused, with its reason; none: nothing."""
    if refused:
        told = "; ".join(f"task {task}: {reason}" for task, reason in refused.items())
        raise InputError(f"{told}. Use --method auto")


def unit_sums(amounts: Values, weights: Values, labels: NDArray[np.int64]) -> tuple[Values, Values]:
    """Return each unit's sum of amounts and of weights."""
    units = int(labels.max()) + 1
    totals = [np.bincount(labels, weights=values, minlength=units) for values in (amounts, weights)]
    return np.asarray(totals[0], dtype=np.float64), np.asarray(totals[1], dtype=np.float64)
