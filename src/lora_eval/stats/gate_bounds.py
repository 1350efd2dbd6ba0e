"""One-sided bounds of a stored pair at any level, from its record alone.

A bound at level L is the end of the two-sided interval at 2 L - 1 of the law behind the pair (`laws.law_of`);
of a sequential comparison it holds at every look. For right-or-wrong items the score interval is taken where
it is the wider one (see `score_interval`). An interval without a law (a bootstrap) is used as it stands, if
it is at least as strict as the gate asks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lora_eval.records import Pair, TaskComparison
from lora_eval.stats.laws import Law, ScaledLaw, law_of
from lora_eval.stats.score_interval import margin_interval


@dataclass(frozen=True, slots=True)
class Bounds:
    """Estimate and one-sided bounds, each at `level`; where they are undefined, `reason` says why."""

    estimate: float | None
    low: float | None
    high: float | None
    level: float
    method: str
    reason: str | None = None


def gate_bounds(line: TaskComparison, pair: Pair, level: float, *, ratio: bool = False) -> Bounds:
    """Return the bounds of the gain (b over a in the metric's better direction), or of the ratio b over a."""
    estimate = pair.ratio if ratio else _gain(pair.difference, line)
    low, high = (pair.ratio_low, pair.ratio_high) if ratio else (pair.ci_low, pair.ci_high)
    if low is None or high is None:
        # Of a line that is not judged the record's reason is that it is not.
        reason = pair.reason if line.primary and pair.reason else f"no interval was made ({pair.method})"
        return Bounds(estimate, None, None, level, pair.method, reason)
    law, used = law_of(pair, higher_is_better=line.higher_is_better), level
    if law is not None:
        low, high = _of_law(law, level, ratio=ratio)
    elif (used := (1.0 + pair.level) / 2.0) < level - 1e-12:
        reason = (
            f"the record's interval holds at {100 * used:g} % on each side and cannot be made again at "
            f"{100 * level:g} %: compare again at a higher level"
        )
        return Bounds(estimate, None, None, level, pair.method, reason)
    if not ratio and not line.higher_is_better:
        low, high = 0.0 - high, 0.0 - low
    return Bounds(estimate, _finite(low), _finite(high), used, pair.method)


def _of_law(law: Law, level: float, *, ratio: bool) -> tuple[float, float]:
    if ratio and isinstance(law, ScaledLaw):
        low, high = law.law.interval(2.0 * level - 1.0)
        return math.exp(low), math.exp(high)
    return margin_interval(law, 2.0 * level - 1.0)


def _gain(difference: float | None, line: TaskComparison) -> float | None:
    return difference if difference is None or line.higher_is_better else 0.0 - difference


def _finite(bound: float) -> float | None:
    """None for the bound of a sequential task that no look has bounded yet."""
    return bound if math.isfinite(bound) else None
