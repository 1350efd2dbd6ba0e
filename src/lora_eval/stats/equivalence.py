"""Equivalence: is the difference shown to lie within a margin on both sides?"""

from __future__ import annotations

from dataclasses import dataclass

from lora_eval.errors import InputError
from lora_eval.stats.estimate import Estimate
from lora_eval.stats.score_interval import margin_law


@dataclass(frozen=True, slots=True)
class Equivalence:
    """The larger of the two one-sided p-values, and whether equivalence is shown; None where undefined."""

    p_value: float | None
    equivalent: bool | None


def equivalence(estimate: Estimate, margin: float | None) -> Equivalence:
    """Return whether the difference is shown to be within -margin to +margin (two one-sided tests, TOST).

    Each side is tested at (1 - level) / 2, so equivalence is shown exactly where the two-sided interval (for
    right-or-wrong items the wider of two, see `margin_law`) lies inside the margin. Schuirmann (1987,
    J. Pharmacokin. Biopharm. 15:657) uses 0.05 a side, which is the interval at level 0.90: give that level
    to have it. Reference for the p-value:
    `statsmodels.stats.weightstats.ttost_paired`.

    Raises:
        InputError: the margin is not above 0.
    """
    if margin is None or estimate.ci_low is None or estimate.ci_high is None:
        return Equivalence(None, None)
    if not margin > 0:
        raise InputError(f"margin: expected a value above 0, got {margin}")
    if estimate.law is None:
        return Equivalence(None, estimate.ci_low > -margin and estimate.ci_high < margin)
    law = margin_law(estimate.law)
    low, high = law.interval(estimate.level)
    return Equivalence(max(law.p_above(-margin), law.p_below(margin)), low > -margin and high < margin)
