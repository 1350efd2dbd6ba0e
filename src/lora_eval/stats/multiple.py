"""Many tasks: p-values adjusted so that one false alarm among all of them stays rare."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's adjusted p-values, in the same order; None stays None and does not count.

    Reference: `statsmodels.stats.multitest.multipletests(method="holm")` (Holm 1979).
    """
    known = [i for i, p in enumerate(p_values) if p is not None]
    values = np.array([p_values[i] for i in known], dtype=np.float64)
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted: list[float | None] = [None] * len(p_values)
    for place, value in zip(order, np.minimum(steps, 1.0), strict=True):
        adjusted[known[int(place)]] = float(value)
    return adjusted
