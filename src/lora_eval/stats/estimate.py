"""Estimate: what every paired method returns, and the checks that all of them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lora_eval.errors import InputError

if TYPE_CHECKING:
    from lora_eval.stats.laws import Law

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Arm b against arm a, paired by item.

    `difference` is b minus a in the metric's own units, bounded at `level` by `ci_low` and `ci_high`
    (two-sided). `higher` and `lower` count the items on which b's value is higher or lower than a's; `ties`
    the rest. `mde` is the smallest difference found with power 0.8 at this n. `ratio` (b over a, with its
    interval) is set for perplexities only. Undefined is None, and `reason` says why.

    `p_mid` is the mid-p value of an exact test. `law` gives bounds and one-sided p-values at other levels
    and values (None: resampled, or nothing bounds the difference). `clusters` counts the independent units
    where items come in clusters, `effective_n` what right-or-wrong items in clusters count for.
    `run_differences` are those of each training run, where an arm has several. `skewness` is that of the
    differences of independent units, where the interval is a t interval.
    """

    n: int
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    level: float
    p_value: float | None
    method: str
    higher: int
    lower: int
    ties: int
    mde: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    reason: str | None = None
    p_mid: float | None = None
    clusters: int | None = None
    effective_n: float | None = None
    run_differences: tuple[float, ...] = ()
    law: Law | None = None
    skewness: float | None = None

    @property
    def changed(self) -> int:
        """Items on which the two arms differ."""
        return self.higher + self.lower


def aligned(a: ArrayLike, b: ArrayLike) -> tuple[Values, Values]:
    """Return both as equally long one-dimensional float arrays of finite values.

    Raises:
        InputError: lengths differ, or a value is NaN or infinite (drop such items before, and count them).
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise InputError(
            f"paired values must be two equally long lists, got {first.shape} and {second.shape}"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise InputError("paired values must be finite; drop items without a value before, and count them")
    return first, second


def check_level(level: float) -> float:
    """Return `level` if it is a confidence level (InputError otherwise)."""
    if not 0.5 <= level < 1:
        raise InputError(f"level: expected a confidence level from 0.5 to below 1, got {level}")
    return level


def counts(a: Values, b: Values) -> tuple[int, int, int]:
    """Return on how many items b is higher, lower and equal. Equal means equal, digit for digit."""
    higher, lower = int((b > a).sum()), int((b < a).sum())
    return higher, lower, len(a) - higher - lower


def empty(level: float, method: str) -> Estimate:
    """Return the estimate of no pairs at all."""
    return Estimate(
        0, None, None, None, level, None, method, 0, 0, 0, reason="no item was answered by both arms"
    )
