"""The sampling law of a difference: its interval at any level, and one-sided p-values against any value.

Interval and p-values of one law always agree: a value lies outside the two-sided interval exactly where one
of its one-sided p-values is below (1 - level) / 2. So non-inferiority, equivalence (TOST) and gates at a
level of their own need no second method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from lora_eval.records import Pair, VariancePart
from lora_eval.stats.dirichlet import dirichlet_interval, probability_above

Scale = Literal["mean", "perplexity", "bits"]
Bounds = tuple[float, float]
_SMALLEST = 1e-300


class Law(Protocol):
    """What bounds a difference."""

    def interval(self, level: float) -> Bounds:
        """Return the two-sided interval."""
        ...

    def p_above(self, value: float) -> float:
        """Return the one-sided p-value of the difference being `value` or less: small if it is above."""
        ...

    def p_below(self, value: float) -> float:
        """Return the one-sided p-value of the difference being `value` or more: small if it is below."""
        ...


@dataclass(frozen=True, slots=True)
class StudentLaw:
    """A mean whose variance is a sum of independent parts, each with its degrees of freedom.

    One part: Student's t. Several: the half width is sqrt(sum_j t_j^2 V_j) with the quantile t_j of each
    part's own degrees of freedom, which covers at least as often as claimed (Banerjee 1960, Sankhya 22:357).
    """

    center: float
    parts: tuple[VariancePart, ...]

    @property
    def standard_error(self) -> float:
        """The square root of all parts together."""
        return math.sqrt(math.fsum(part.variance for part in self.parts))

    def interval(self, level: float) -> Bounds:
        """Return the two-sided interval."""
        half = self._half_width((1.0 - level) / 2.0)
        return self.center - half, self.center + half

    def p_above(self, value: float) -> float:
        """Return the one-sided p-value of the difference being `value` or less."""
        tail = self._tail(abs(self.center - value))
        return tail if self.center >= value else 1.0 - tail

    def p_below(self, value: float) -> float:
        """Return the one-sided p-value of the difference being `value` or more."""
        tail = self._tail(abs(self.center - value))
        return tail if self.center <= value else 1.0 - tail

    def p_two_sided(self) -> float:
        """Return the p-value of no difference."""
        return min(1.0, 2.0 * self._tail(abs(self.center)))

    def _half_width(self, tail: float) -> float:
        from scipy.special import stdtrit

        return math.hypot(
            *(float(stdtrit(part.degrees_of_freedom, tail)) * math.sqrt(part.variance) for part in self.parts)
        )

    def _tail(self, distance: float) -> float:
        """The one-sided p-value at which the half width is `distance`; the smallest one given is 1e-300."""
        from scipy.optimize import brentq
        from scipy.special import stdtr

        if len(self.parts) == 1:
            return float(stdtr(self.parts[0].degrees_of_freedom, -distance / self.standard_error))
        if distance <= 0.0:
            return 0.5
        if self._half_width(_SMALLEST) <= distance:
            return _SMALLEST

        def excess(log_tail: float) -> float:
            return self._half_width(math.exp(log_tail)) - distance

        return math.exp(brentq(excess, math.log(_SMALLEST), math.log(0.5), xtol=1e-14))


@dataclass(frozen=True, slots=True)
class ScaledLaw:
    """A law of r, in nats for each unit of weight, taken to a perplexity's or bits' difference.

    `unit` is perplexity_a, or 1 / ln 2.
    """

    law: Law
    unit: float
    scale: Scale

    def interval(self, level: float) -> Bounds:
        """Return the two-sided interval."""
        low, high = self.law.interval(level)
        return to_metric(low, self.unit, self.scale), to_metric(high, self.unit, self.scale)

    def p_above(self, value: float) -> float:
        """Return the one-sided p-value of the difference being `value` or less."""
        r = self._inverse(value)
        return 0.0 if r is None else self.law.p_above(r)

    def p_below(self, value: float) -> float:
        """Return the one-sided p-value of the difference being `value` or more."""
        r = self._inverse(value)
        return 1.0 if r is None else self.law.p_below(r)

    def _inverse(self, value: float) -> float | None:
        """The value on the scale of r; None below what a perplexity can lose."""
        share = value / self.unit
        if self.scale != "perplexity":
            return share
        return math.log1p(share) if share > -1.0 else None


@dataclass(frozen=True, slots=True)
class DirichletLaw:
    """The posterior of p01 - p10 under a Dirichlet(1/2) prior; one-sided p-values are its tails."""

    wins: float
    losses: float
    ties: float

    @property
    def variance(self) -> float:
        """The posterior's variance."""
        changed, total = self.wins + self.losses + 1.0, self.wins + self.losses + self.ties + 2.0
        mean = (self.wins - self.losses) / total
        return (changed / total - mean**2) / (total + 1.0)

    def interval(self, level: float) -> Bounds:
        """Return the equal-tailed interval."""
        return dirichlet_interval(self.wins, self.losses, self.ties, level)

    def p_above(self, value: float) -> float:
        """Return the posterior probability that the difference is `value` or less."""
        return probability_above(-value, self.losses, self.wins, self.ties)

    def p_below(self, value: float) -> float:
        """Return the posterior probability that the difference is `value` or more."""
        return probability_above(value, self.wins, self.losses, self.ties)


def to_metric(r: float, unit: float, scale: Scale) -> float:
    """Return r in the metric's units."""
    return unit * math.expm1(r) if scale == "perplexity" else unit * r


def law_of(pair: Pair, *, higher_is_better: bool) -> Law | None:
    """Return the law behind a stored pair, from its figures alone; None where its method has none.

    A resampled interval and a difference without one have none.
    """
    if pair.difference is None or pair.ci_low is None:
        return None
    if pair.looks:
        from lora_eval.stats.sequential import SequentialLaw  # it imports this module

        return _in_units(pair, SequentialLaw(pair.looks))
    if pair.variance_parts:
        return _in_units(pair, StudentLaw(_center(pair), pair.variance_parts))
    if "Dirichlet" not in pair.method or not pair.n:
        return None
    wins, losses = (pair.wins, pair.losses) if higher_is_better else (pair.losses, pair.wins)
    share = 1.0 if pair.effective_n is None else pair.effective_n / pair.n
    return DirichletLaw(wins * share, losses * share, pair.ties * share)


def _center(pair: Pair) -> float:
    """The difference on the scale of its law: a mean, or the log ratio r."""
    difference = pair.difference or 0.0
    if "log ratio" not in pair.method:
        return difference
    return difference * math.log(2.0) if pair.ratio is None else math.log(pair.ratio)


def _in_units(pair: Pair, law: Law) -> Law:
    """The law of r taken to the metric's units; any other is in them already."""
    if "log ratio" not in pair.method:
        return law
    if pair.ratio is None or pair.ratio_low is None:
        return ScaledLaw(law, 1.0 / math.log(2.0), "bits")
    # The bound is used, not the difference: that may be 0, and then says nothing about perplexity_a.
    unit = (pair.ci_low or 0.0) / (pair.ratio_low - 1.0)
    return ScaledLaw(law, unit, "perplexity")
