"""The suite-level score in words: a macro average over tasks with its own interval, for every arm."""

from __future__ import annotations

from dataclasses import dataclass

from lora_eval.records import Comparison, SuitePair, SuiteScore
from lora_eval.reports.numbers import DASH, fixed, p_text, points_text, supported_decimals


@dataclass(frozen=True, slots=True)
class ScorePair:
    """One pair of arms on the average."""

    a: str
    b: str
    difference: str
    interval: str
    p: str
    detectable: str
    reason: str


@dataclass(frozen=True, slots=True)
class ScoreLine:
    """One average: over which tasks, each arm's mean, and every pair."""

    name: str
    tasks: tuple[str, ...]
    left_out: dict[str, str]
    means: dict[str, str]
    pairs: tuple[ScorePair, ...]

    def pair(self, a: str, b: str) -> ScorePair | None:
        """Arm `b` against arm `a`; None where they were not compared."""
        return next((pair for pair in self.pairs if (pair.a, pair.b) == (a, b)), None)


def score_lines(comparison: Comparison) -> list[ScoreLine]:
    """Return the averages of the record, in its order."""
    return [_line(score) for score in comparison.suite_scores]


def _line(score: SuiteScore) -> ScoreLine:
    first = score.pairs[0].a if score.pairs else None
    decimals = [_decimals(pair) for pair in score.pairs if pair.a == first]
    finest = max((found for found in decimals if found is not None), default=0)
    digits = max(finest, 1)
    means = {
        arm: DASH if value is None else f"{fixed(100 * value, digits)} %"
        for arm, value in score.means.items()
    }
    name = "Mean of all tasks" if score.role is None else f"Mean of the {score.role} tasks"
    return ScoreLine(name, score.tasks, dict(score.left_out), means, tuple(map(_pair, score.pairs)))


def _pair(pair: SuitePair) -> ScorePair:
    difference, interval = points_text(pair.ci_low, pair.difference, pair.ci_high)
    decimals = _decimals(pair)
    found = (
        DASH if pair.mde is None else fixed(100 * pair.mde, 1 if decimals is None else decimals, apart=0.0)
    )
    return ScorePair(pair.a, pair.b, difference, interval, p_text(pair.p_value), found, pair.reason or "")


def _decimals(pair: SuitePair) -> int | None:
    if pair.ci_low is None or pair.ci_high is None:
        return None
    return supported_decimals(100 * pair.ci_low, 100 * pair.ci_high)
