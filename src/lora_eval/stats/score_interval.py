"""Score interval of a paired difference of two rates, for margins on right-or-wrong items.

The Dirichlet(1/2) interval is too short where few items change and all of them in one direction: a model that
really loses 1 % of its answers passes `max_drop: 0.01` on 200 items in 13 % of the runs at level 0.95, not in
5 %. The score interval keeps the level there (docs/gate.md). So whatever is judged against a margin (a gate,
`not_worse`, equivalence) takes the wider one of the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lora_eval.stats.laws import Bounds, DirichletLaw, Law


@dataclass(frozen=True, slots=True)
class CautiousLaw:
    """Right-or-wrong items: the wider one of the Dirichlet and the score interval, at either end."""

    higher: float
    lower: float
    ties: float

    def interval(self, level: float) -> Bounds:
        """Return the smallest interval that holds both."""
        own = self._dirichlet.interval(level)
        score = score_interval(self.higher, self.lower, self.ties, level)
        return min(own[0], score[0]), max(own[1], score[1])

    def p_above(self, value: float) -> float:
        """Return the larger one-sided p-value of the difference being `value` or less."""
        return max(self._dirichlet.p_above(value), self._tail(self._statistic(value)))

    def p_below(self, value: float) -> float:
        """Return the larger one-sided p-value of the difference being `value` or more."""
        return max(self._dirichlet.p_below(value), self._tail(-self._statistic(value)))

    @property
    def _dirichlet(self) -> DirichletLaw:
        return DirichletLaw(self.higher, self.lower, self.ties)

    def _statistic(self, value: float) -> float:
        return score_statistic(value, self.higher, self.lower, self.ties)

    def _tail(self, z: float) -> float:
        from scipy.special import ndtr

        return float(ndtr(-z))


def margin_law(law: Law) -> Law:
    """Return the law that is set against a margin: for right-or-wrong items the cautious one, else the law
    itself. The looks of a sequential comparison are cautious already.
    """
    return CautiousLaw(law.wins, law.losses, law.ties) if isinstance(law, DirichletLaw) else law


def margin_interval(law: Law, level: float) -> Bounds:
    """Return the two-sided interval that is set against a margin (`margin_law`)."""
    return margin_law(law).interval(level)


def score_interval(wins: float, losses: float, ties: float, level: float) -> Bounds:
    """Return the two-sided interval of p01 - p10 (Tango 1998, Statistics in Medicine 17:891).

    It holds the differences that the score test does not reject. Swapping wins and losses mirrors it.
    """
    return _low(wins, losses, ties, level), -_low(losses, wins, ties, level)


def score_statistic(difference: float, wins: float, losses: float, ties: float) -> float:
    """Return the score test's z of the true difference being `difference` (Tango 1998, section 3).

    The share of losses is the most likely one under that difference, a root of A q^2 + B q + C.
    """
    n, x = wins + losses + ties, difference
    seen = wins - losses - n * x
    a, b, c = 2.0 * n, (2.0 * n - wins + losses) * x - wins - losses, -losses * x * (1.0 - x)
    lost = (math.sqrt(max(b * b - 4.0 * a * c, 0.0)) - b) / (2.0 * a)
    variance = n * (2.0 * lost + x * (1.0 - x))
    if variance > 0.0:
        return seen / math.sqrt(variance)
    return math.copysign(math.inf, seen) if seen else 0.0


def _low(wins: float, losses: float, ties: float, level: float) -> float:
    from scipy.optimize import brentq
    from scipy.special import ndtri

    n = wins + losses + ties
    if losses == n:
        return -1.0
    z = float(ndtri(0.5 + level / 2.0))

    def excess(x: float) -> float:
        # Finite, for the root's bracket: at -1 the statistic is infinite.
        return min(score_statistic(x, wins, losses, ties), 1e6) - z

    return float(brentq(excess, -1.0, (wins - losses) / n, xtol=1e-13))
