"""One-sided bounds of a stored pair at any level, from its record alone.

A bound at level L is the end of the two-sided interval at 2 L - 1. Counts give the Dirichlet interval again,
standard error and degrees of freedom the t interval. Whether a stored interval is one of these is not taken
from its name: the stored figures must give it again. Any other (a bootstrap, an anytime-valid sequence) is
used as it stands, if it is at least as strict as the gate asks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from lora_eval.records import Pair, TaskComparison
from lora_eval.stats.binary import dirichlet_interval
from lora_eval.stats.pairing import LIKELIHOOD_METRICS


@dataclass(frozen=True, slots=True)
class Bounds:
    """Estimate and one-sided bounds, each at `level`; where they are undefined, `reason` says why."""

    estimate: float | None
    low: float | None
    high: float | None
    level: float
    method: str
    reason: str | None = None


class _Interval(NamedTuple):
    """Two-sided bounds of the difference b minus a, and of the ratio where there is one."""

    low: float
    high: float
    ratio_low: float | None = None
    ratio_high: float | None = None


def gate_bounds(line: TaskComparison, pair: Pair, level: float, *, ratio: bool = False) -> Bounds:
    """Return the bounds of the gain (b over a in the metric's better direction), or of the ratio b over a."""
    estimate = pair.ratio if ratio else _gain(pair.difference, line)
    stored = _stored(pair)
    if stored is None:
        # Of a line that is not judged the record's reason is that it is not.
        reason = pair.reason if line.primary and pair.reason else f"no interval was made ({pair.method})"
        return Bounds(estimate, None, None, level, pair.method, reason)
    again = interval_at(line, pair, pair.level)
    if again is not None and _same(again, stored):
        found, used = interval_at(line, pair, 2.0 * level - 1.0), level
    else:
        found, used = stored, (1.0 + pair.level) / 2.0
    if used < level - 1e-12:
        reason = (
            f"the record's interval holds at {100 * used:g} % on each side and cannot be made again at "
            f"{100 * level:g} %: compare again at a higher level"
        )
        return Bounds(estimate, None, None, level, pair.method, reason)
    low, high = _oriented(found or stored, line, ratio=ratio)
    return Bounds(estimate, low, high, used, pair.method)


def interval_at(line: TaskComparison, pair: Pair, confidence: float) -> _Interval | None:
    """Return the two-sided interval at `confidence` that the pair's counts, or its standard error, give."""
    if pair.standard_error is not None and pair.degrees_of_freedom is not None:
        return _t_interval(line, pair, pair.standard_error, pair.degrees_of_freedom, confidence)
    if pair.n and pair.wins + pair.losses + pair.ties == pair.n:
        higher, lower = (pair.wins, pair.losses) if line.higher_is_better else (pair.losses, pair.wins)
        return _Interval(*dirichlet_interval(higher, lower, pair.ties, confidence))
    return None


def _t_interval(
    line: TaskComparison, pair: Pair, error: float, freedom: float, confidence: float
) -> _Interval | None:
    from scipy.special import stdtrit

    half = float(stdtrit(freedom, 0.5 + confidence / 2.0)) * error
    difference = pair.difference or 0.0
    scale = LIKELIHOOD_METRICS.get(line.metric)
    if scale == "bits":
        half /= math.log(2.0)
    if scale != "perplexity":
        return _Interval(difference - half, difference + half)
    stored = _stored(pair)
    if stored is None or not pair.ratio or not stored.ratio_low or not stored.ratio_high:
        return None
    # Both intervals are the one of r = ln(ratio); the difference is perplexity_a (ratio - 1).
    unit = (stored.high - stored.low) / (stored.ratio_high - stored.ratio_low)
    r = math.log(pair.ratio)
    return _Interval(
        unit * math.expm1(r - half), unit * math.expm1(r + half), math.exp(r - half), math.exp(r + half)
    )


def _stored(pair: Pair) -> _Interval | None:
    if pair.ci_low is None or pair.ci_high is None:
        return None
    return _Interval(pair.ci_low, pair.ci_high, pair.ratio_low, pair.ratio_high)


def _same(one: _Interval, other: _Interval) -> bool:
    """Equal to rounding: within a millionth of the interval's width."""
    room = 1e-6 * (other.high - other.low)
    return abs(one.low - other.low) <= room and abs(one.high - other.high) <= room


def _oriented(found: _Interval, line: TaskComparison, *, ratio: bool) -> tuple[float | None, float | None]:
    if ratio:
        return found.ratio_low, found.ratio_high
    return (found.low, found.high) if line.higher_is_better else (0.0 - found.high, 0.0 - found.low)


def _gain(difference: float | None, line: TaskComparison) -> float | None:
    return difference if difference is None or line.higher_is_better else 0.0 - difference
