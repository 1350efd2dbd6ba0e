"""How figures are written: shares as percent, differences as points, perplexities as they are.

Digits follow the interval, by the rounding rule of the Review of Particle Physics (Particle Data Group,
Introduction, "Rounding"), applied to half the interval's width: if its first three digits lie between 100 and
354, two of its digits are kept, between 355 and 949 one, from 950 on it counts as 1000 with two. So the last
digit printed is worth between 3 % and 28 % of the half-width, and rounding moves a figure by at most 14 % of
it. A difference, its interval's ends and its detectable size have the same digits. Means have one digit more
than the finest difference from the first arm (a share no more than its number of items can tell apart), so
that subtracting them by eye gives the difference that is printed.

An end that is not 0 is never printed as 0: it gets the digits it needs, so the text lies on the same side of
"no difference" as the verdict. A missing value is a dash, never a zero. What was stated, such as a margin, is
printed as it was stated.
"""

from __future__ import annotations

import math
from decimal import Decimal

from lora_eval.records import Pair, TaskComparison
from lora_eval.stats.pairing import LIKELIHOOD_METRICS

DASH = "–"  # noqa: RUF001 (typography)
MINUS = "−"  # noqa: RUF001
_MOST = 12  # decimals: beyond them lies the rounding of the sums themselves


def is_share(task: TaskComparison) -> bool:
    """Whether the metric is a share from 0 to 1, shown as percent (differences: percentage points)."""
    if task.metric in LIKELIHOOD_METRICS:
        return False
    return all(mean is None or 0 <= mean <= 1 for mean in task.means.values())


def unit_name(task: TaskComparison) -> str:
    """The unit of a difference: `points` of percent, or the metric's name."""
    return "points" if is_share(task) else task.metric.replace("_", " ")


def supported_decimals(low: float | None, high: float | None) -> int | None:
    """Decimals that an interval supports (see above); None where there is none, or it has no width."""
    if low is None or high is None or not 0 < (half := (high - low) / 2) < math.inf:
        return None
    if half < 10.0**-_MOST:
        return _MOST
    exponent = math.floor(math.log10(half))
    leading = round(half / 10.0**exponent, 2)
    if leading >= 9.5:
        exponent, leading = exponent + 1, 1.0
    return min(_MOST, max(0, -exponent + (1 if leading < 3.55 else 0)))


def fixed(value: float, decimals: int, *, signed: bool = False, apart: float | None = None) -> str:
    """`value` with that many decimals and a true minus sign; what rounds to 0 has no sign.

    It gets as many decimals more as it takes to stay on its own side of `apart` (no difference, a threshold).
    """
    # As the decimal number it stands for: -0.075 and its -7.5 points are then rounded alike.
    exact = Decimal(f"{value:.15g}")
    if apart is not None:
        while decimals < _MOST and _side(float(f"{exact:.{decimals}f}"), apart) != _side(value, apart):
            decimals += 1
    text = f"{exact:{'+' if signed else ''},.{decimals}f}"
    if float(text.replace(",", "")) == 0:
        return text.lstrip("+-")
    return text.replace("-", MINUS)


def mean_text(task: TaskComparison, value: float | None) -> str:
    """A mean: `62.5 %`, `4.31` or a dash."""
    if value is None:
        return DASH
    first = task.pairs[0].a if task.pairs else None
    found = [_own_decimals(task, pair) for pair in task.pairs if pair.a == first]
    known = [decimals for decimals in found if decimals is not None]
    if is_share(task):
        finest = max(known, default=1)
        told_apart = max(0, math.ceil(math.log10(max(task.n, 1))) - 2)
        return f"{fixed(100 * value, min(finest + 1, max(finest, told_apart)))} %"
    return fixed(value, max(known) + 1) if known else plain(value)


def difference_text(task: TaskComparison, pair: Pair) -> str:
    """A signed difference: `+12.5` (points), with a true minus sign below 0."""
    if pair.difference is None:
        return DASH
    return fixed(_factor(task) * pair.difference, _decimals(task, pair), signed=True)


def size_text(task: TaskComparison, pair: Pair, value: float | None) -> str:
    """An unsigned size in the unit of the pair's difference, such as the smallest detectable one."""
    if value is None:
        return DASH
    return fixed(_factor(task) * value, _decimals(task, pair), apart=0.0)


def margin_text(task: TaskComparison, margin: float) -> str:
    """A margin as it was stated, in the unit of the task's differences."""
    return f"{_factor(task) * margin:.6g}"


def interval_text(task: TaskComparison, pair: Pair) -> str:
    """The interval of a difference: `+8.1 to +17.0`, or a dash."""
    if pair.ci_low is None or pair.ci_high is None:
        return DASH
    factor, decimals = _factor(task), _decimals(task, pair)
    ends = (fixed(factor * end, decimals, signed=True, apart=0.0) for end in (pair.ci_low, pair.ci_high))
    return " to ".join(ends)


def run_differences_text(task: TaskComparison, pair: Pair) -> str:
    """The differences of single training runs, and how much they scatter: `+8.1, +9.4 (sd 0.7)`."""
    factor, decimals = _factor(task), _decimals(task, pair)
    each = ", ".join(fixed(factor * value, decimals, signed=True) for value in pair.run_differences)
    if pair.between_runs_sd is None:
        return each
    return f"{each} (sd between trainings {fixed(factor * pair.between_runs_sd, decimals)})"


def ratio_text(pair: Pair) -> str:
    """A ratio of perplexities: `1.043`, or a dash."""
    return DASH if pair.ratio is None else fixed(pair.ratio, _ratio_decimals(pair))


def ratio_interval_text(pair: Pair) -> str:
    """The interval of a ratio: `1.021 to 1.066`, or a dash. An end that is not 1 is not printed as 1."""
    if pair.ratio_low is None or pair.ratio_high is None:
        return DASH
    ends = (pair.ratio_low, pair.ratio_high)
    return " to ".join(fixed(end, _ratio_decimals(pair), apart=1.0) for end in ends)


def points_text(low: float | None, value: float | None, high: float | None) -> tuple[str, str]:
    """A share's difference in points and its interval, written as those of a task are."""
    ends = [None if end is None else 100 * end for end in (low, high)]
    decimals = supported_decimals(*ends)
    places = 1 if decimals is None else decimals
    middle = DASH if value is None else fixed(100 * value, places, signed=True)
    known = [fixed(end, places, signed=True, apart=0.0) for end in ends if end is not None]
    return middle, " to ".join(known) if len(known) == 2 else DASH


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


def about_text(value: int) -> str:
    """A needed number of items, rounded up to two digits: it rests on the difference that was seen."""
    step = 10 ** max(0, len(str(value)) - 2)
    return f"{-(-value // step) * step:,}"


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


def _factor(task: TaskComparison) -> float:
    return 100.0 if is_share(task) else 1.0


def _own_decimals(task: TaskComparison, pair: Pair) -> int | None:
    if pair.ci_low is None or pair.ci_high is None:
        return None
    return supported_decimals(_factor(task) * pair.ci_low, _factor(task) * pair.ci_high)


def _decimals(task: TaskComparison, pair: Pair) -> int:
    """Without an interval: tenths of a point, else one digit more than three of the means."""
    own = _own_decimals(task, pair)
    if own is not None:
        return own
    if is_share(task):
        return 1
    largest = max((abs(mean) for mean in task.means.values() if mean), default=1.0)
    return min(8, max(0, 3 - math.floor(math.log10(largest))))


def _ratio_decimals(pair: Pair) -> int:
    own = supported_decimals(pair.ratio_low, pair.ratio_high)
    return 4 if own is None else own


def _side(value: float, place: float) -> int:
    return (value > place) - (value < place)
