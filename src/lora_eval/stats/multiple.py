"""Many tasks: p-values adjusted for their number.

Holm's keep the chance of one or more false alarms below the level: verdicts rest on them. Benjamini and
Hochberg's keep the expected share of false alarms among the alarms below it: for looking around.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lora_eval.stats.estimate import Values


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's adjusted p-values, in the same order; None stays None and does not count.

    Reference: `statsmodels.stats.multitest.multipletests(method="holm")` (Holm 1979).
    """

    def step_down(ordered: Values) -> Values:
        return np.maximum.accumulate(ordered * np.arange(len(ordered), 0, -1))

    return _adjusted(p_values, step_down)


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Benjamini and Hochberg's adjusted p-values, in the same order; None stays None.

    Reference: `scipy.stats.false_discovery_control` (Benjamini and Hochberg 1995, JRSS B 57:289).
    """

    def step_up(ordered: Values) -> Values:
        # The factor first: the last one is exactly 1, and no value is raised beyond itself by rounding.
        raised = ordered * (len(ordered) / np.arange(1, len(ordered) + 1))
        return np.minimum.accumulate(raised[::-1])[::-1]

    return _adjusted(p_values, step_up)


def _adjusted(p_values: Sequence[float | None], steps: Callable[[Values], Values]) -> list[float | None]:
    """Apply `steps` to the known p-values in ascending order, and put them back in their places."""
    known = [i for i, p in enumerate(p_values) if p is not None]
    values = np.array([p_values[i] for i in known], dtype=np.float64)
    order = np.argsort(values, kind="stable")
    adjusted: list[float | None] = [None] * len(p_values)
    for place, value in zip(order, np.minimum(steps(values[order]), 1.0), strict=True):
        adjusted[known[int(place)]] = float(value)
    return adjusted
