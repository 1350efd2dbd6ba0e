"""How figures are written: shares as percent, differences as points, perplexities as they are.

A missing value is a dash, never a zero.
"""

from __future__ import annotations

import math

from lora_eval.records import Pair, TaskComparison
from lora_eval.stats.pairing import LIKELIHOOD_METRICS

DASH = "–"  # noqa: RUF001 (typography)
MINUS = "−"  # noqa: RUF001


def is_share(task: TaskComparison) -> bool:
    """Whether the metric is a share from 0 to 1, shown as percent (differences: percentage points)."""
    if task.metric in LIKELIHOOD_METRICS:
        return False
    return all(mean is None or 0 <= mean <= 1 for mean in task.means.values())


def unit_name(task: TaskComparison) -> str:
    """The unit of a difference: `points` of percent, or the metric's name."""
    return "points" if is_share(task) else task.metric.replace("_", " ")


def mean_text(task: TaskComparison, value: float | None) -> str:
    """A mean: `62.5 %`, `4.31` or a dash."""
    if value is None:
        return DASH
    return f"{100 * value:.1f} %" if is_share(task) else plain(value)


def difference_text(task: TaskComparison, value: float | None) -> str:
    """A signed difference: `+12.5` (points), with a true minus sign below 0."""
    if value is None:
        return DASH
    text = f"{100 * value:+.1f}" if is_share(task) else f"{value:+,.{_decimals(task)}f}"
    return (text.lstrip("+-") if value == 0 else text).replace("-", MINUS)


def size_text(task: TaskComparison, value: float | None) -> str:
    """An unsigned difference, such as the smallest detectable one."""
    if value is None:
        return DASH
    return f"{100 * value:.1f}" if is_share(task) else f"{value:,.{_decimals(task)}f}"


def interval_text(task: TaskComparison, pair: Pair) -> str:
    """The interval of a difference: `+8.1 to +17.0`, or a dash."""
    if pair.ci_low is None or pair.ci_high is None:
        return DASH
    return f"{difference_text(task, pair.ci_low)} to {difference_text(task, pair.ci_high)}"


def p_text(value: float | None) -> str:
    """A p-value with two digits; `< 0.0001` below that."""
    if value is None:
        return DASH
    if value < 1e-4:
        return "< 0.0001"
    return f"{value:.2f}" if value >= 0.095 else f"{value:.2g}"


def count_text(value: int | None) -> str:
    """A count with thousands separators, or a dash."""
    return DASH if value is None else f"{value:,}"


def seconds_text(value: float | None) -> str:
    """A duration: `42 s`, `3 min 05 s`, `2 h 10 min`."""
    if value is None:
        return DASH
    if value < 60:
        return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def plain(value: float) -> str:
    """A number with three digits that mean something, or as many as stand before the point."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def gain(task: TaskComparison, value: float | None) -> float | None:
    """A difference in the metric's better direction: above 0 is good."""
    if value is None:
        return None
    return value if task.higher_is_better else -value


def _decimals(task: TaskComparison) -> int:
    """Decimals of a difference: one digit more than the means have, so that it never reads as scientific."""
    largest = max((abs(mean) for mean in task.means.values() if mean), default=1.0)
    return min(8, max(0, 3 - math.floor(math.log10(largest))))
