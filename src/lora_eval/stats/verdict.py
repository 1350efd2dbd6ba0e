"""From an estimate to one of four words, by rules that a reader can check in the table.

better      the adjusted p-value is below 1 - level, the interval excludes 0, and the gain is positive
worse       the same, and the gain is negative (even within a margin: a drop that was seen is not hidden)
not_worse   not one of these, a margin is stated, and the interval's lower bound of the gain is above -margin
inconclusive  everything else; the reason names the n that would decide, if one would

The gain is the difference in the metric's better direction. The bound is the one of the two-sided interval
that is printed, so a `not_worse` at level 0.95 is a one-sided test at 0.025 (ICH E9, section 3.3.2). For
right-or-wrong items the score interval must hold the margin too (see `score_interval`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lora_eval.stats.estimate import Estimate
from lora_eval.stats.power import needed_n
from lora_eval.stats.score_interval import margin_interval

FEW_PAIRS = 20
Word = Literal["better", "worse", "not_worse", "inconclusive"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict, the reason where one is needed, and how many items would decide (None: no n would)."""

    verdict: Word
    reason: str | None
    n_needed: int | None


def judge(
    estimate: Estimate,
    p_adjusted: float | None,
    *,
    higher_is_better: bool,
    margin: float | None = None,
    tests: int = 1,
) -> Judgement:
    """Return the verdict on an estimate.

    `p_adjusted` None means that no test applies; `tests` is how many p-values it was adjusted among.
    """
    low, high = gain_bounds(estimate, higher_is_better=higher_is_better)
    caution = _caution(estimate)
    tested = p_adjusted is not None and p_adjusted < 1.0 - estimate.level
    if tested and low is not None and low > 0:
        return Judgement("better", caution, None)
    bound = _margin_bound(estimate, low, higher_is_better=higher_is_better)
    safe = margin is not None and bound is not None and bound > -margin
    if tested and high is not None and high < 0:
        within = f"the drop is within the stated margin of {margin:g}" if safe else None
        return Judgement("worse", _join(within, caution), None)
    if safe:
        return Judgement("not_worse", caution, None)
    needed = _needed(estimate, higher_is_better, margin, tests)
    near = None
    if margin is not None and low is not None and bound is not None and low > -margin:
        near = f"the score interval reaches {bound:+.2g}, beyond the margin of {margin:g}"
    return Judgement(
        "inconclusive", _join(estimate.reason, caution, _undecided(estimate, p_adjusted), near), needed
    )


def gain_bounds(estimate: Estimate, *, higher_is_better: bool) -> tuple[float | None, float | None]:
    """Return the interval of the gain: the difference in the metric's better direction."""
    if estimate.ci_low is None or estimate.ci_high is None:
        return None, None
    if higher_is_better:
        return estimate.ci_low, estimate.ci_high
    return -estimate.ci_high, -estimate.ci_low


def _caution(estimate: Estimate) -> str | None:
    """What a reader must know before the interval: few pairs, no change, skewness, few training runs."""
    return _join(_few(estimate), _unchanged(estimate), _skewed(estimate), _training_runs(estimate))


def _few(estimate: Estimate) -> str | None:
    if 0 < estimate.n < FEW_PAIRS:
        return f"only {estimate.n} pairs: fewer than {FEW_PAIRS} say little, whatever the interval"
    if estimate.clusters is not None and estimate.clusters < FEW_PAIRS:
        return (
            f"only {estimate.clusters} independent clusters: fewer than {FEW_PAIRS} say little, whatever the "
            "interval"
        )
    return None


def _margin_bound(estimate: Estimate, low: float | None, *, higher_is_better: bool) -> float | None:
    """The lower bound of the gain that a margin is held against."""
    if low is None or estimate.law is None:
        return low
    ends = margin_interval(estimate.law, estimate.level)
    return ends[0] if higher_is_better else -ends[1]


def _unchanged(estimate: Estimate) -> str | None:
    if not estimate.n or estimate.changed or estimate.ci_low is None or estimate.ci_high is None:
        return None
    return (
        f"no item changed; with {estimate.n} items a difference within the interval "
        f"({estimate.ci_low:+.2g} to {estimate.ci_high:+.2g}) is still possible"
    )


def _skewed(estimate: Estimate) -> str | None:
    """Cochran's rule: with more than 25 G1^2 items an interval at 0.95 is wrong in at most 6 % (Sampling
    Techniques, 3rd ed. 1977, section 2.15). It is said of 90 % of the comparisons of 20 or 50 very skewed
    items (squares of normal ones), of 3 % with 400, and of 5 % with 20 symmetric ones (600 each).
    """
    if estimate.skewness is None:
        return None
    enough = 25.0 * estimate.skewness**2
    if (estimate.clusters or estimate.n) > enough:
        return None
    return (
        f"the differences are skewed ({estimate.skewness:+.1f}): below about {10 * math.ceil(enough / 10)} "
        "independent items the interval covers less than it says"
    )


def _training_runs(estimate: Estimate) -> str | None:
    runs = len(estimate.run_differences)
    if not runs:
        return None
    freedom = "1 degree of freedom" if runs == 2 else f"{runs - 1} degrees of freedom"
    return f"{runs} training runs: the spread between them rests on {freedom}"


def _undecided(estimate: Estimate, p_adjusted: float | None) -> str | None:
    if estimate.p_value is None or p_adjusted is None or estimate.ci_low is None or estimate.ci_high is None:
        return None
    alpha = 1.0 - estimate.level
    if estimate.p_value < alpha <= p_adjusted:
        return "significant alone, but not after the correction for the number of tasks"
    smallest = 2.0 ** (1 - estimate.changed)
    if estimate.p_mid is not None and estimate.clusters is None and estimate.changed and smallest >= alpha:
        items = "1 item" if estimate.changed == 1 else f"{estimate.changed} items"
        return f"only {items} changed: the exact test cannot give less than p = {smallest:.2g} for so few"
    if (estimate.ci_low > 0 or estimate.ci_high < 0) and estimate.p_value >= alpha:
        return "the interval excludes 0 but the exact test does not confirm it"
    return None


def _needed(estimate: Estimate, higher_is_better: bool, margin: float | None, tests: int) -> int | None:
    """The fewest items that would decide either way: a difference found, or the margin held. None with
    training runs: more items do not narrow what differs between them.
    """
    if estimate.difference is None or estimate.run_differences:
        return None
    gain = estimate.difference if higher_is_better else -estimate.difference
    ways = [needed_n(estimate.n, estimate.mde, abs(gain), tests=tests, level=estimate.level)]
    if margin is not None:
        # The bound against the margin is the printed interval's, which is not corrected.
        ways.append(needed_n(estimate.n, estimate.mde, gain + margin, level=estimate.level))
    return min((n for n in ways if n is not None), default=None)


def _join(*parts: str | None) -> str | None:
    return "; ".join(dict.fromkeys(part for part in parts if part)) or None
