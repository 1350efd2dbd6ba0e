"""Looking at the data before all of it is there: intervals and p-values that stay valid at every look.

A task's items are answered in random order and looked at when n_1 < n_2 < ... < N of them are there. The
error spent up to a look is alpha (n_k / N)^2: an alpha-spending function (Lan and DeMets 1983, Biometrika
70:659) of the power family (Kim and DeMets 1987, Biometrika 74:149). It gives each look a nominal level, by
the joint normal law of the looks (Armitage, McPherson and Rowe 1969, JRSS A 132:235), and the fixed-size
test and interval of the look are taken at that level (the significance-level approach: Jennison and Turnbull
2000, Group Sequential Methods, chapter 3). So the intervals of all looks hold together with the stated
confidence, whatever the reason to stop (repeated confidence intervals: Jennison and Turnbull 1989, JRSS B
51:305), and the smallest alpha at which a look would have rejected is a p-value at any time.

Compared in docs/sequential.md: Pocock's spending stops earlier and decides less often; bets and mixtures,
which may be looked at after every item, stop later and decide less often.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_eval.errors import InputError
from lora_eval.records import Look
from lora_eval.stats.laws import Bounds, Law, StudentLaw
from lora_eval.stats.score_interval import CautiousLaw

FIRST_LOOK = 50
GROWTH = 1.5
POWER = 2.0
METHOD = "group sequential: alpha spending (n/N)^2, repeated confidence intervals"
SOURCE = (
    "Lan and DeMets 1983, Biometrika 70:659; Kim and DeMets 1987, Biometrika 74:149; "
    "Jennison and Turnbull 1989, JRSS B 51:305"
)
_NODES = 64
_STEPS = 60  # of bisection
# Levels at which nominal levels are computed; between them log(nominal) is linear in log(alpha).
_ALPHAS = tuple(sorted({*np.geomspace(1e-12, 0.5, 56), 0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.7, 0.9, 0.999}))
_TINY = 1e-14  # a level that no interval can be computed at

Array = NDArray[np.float64]


def look_sizes(total: int) -> tuple[int, ...]:
    """Return how many of `total` items are there at each look: each time half as many again, at last all.

    The first look is at 50 to 75 items (at all of them, if there are fewer).
    """
    sizes, size = [total], total / GROWTH
    while size >= FIRST_LOOK:
        sizes.append(round(size))
        size /= GROWTH
    return tuple(reversed(sizes))


def order_key(seed: int, task: str, item: int) -> bytes:
    """Return what items are ordered by: at random, but for one seed always alike, whoever else is there."""
    return hashlib.sha256(f"{seed}\0{task}\0{item}".encode()).digest()


def nominal_levels(shares: Sequence[float], alpha: float) -> tuple[float, ...]:
    """Return the two-sided level of the test at each look, `shares` n_k / N of the items being there.

    Exact for a normal mean with known variance: some |Z_k| then passes its level with probability
    alpha (n_K / N)^2. It depends on the looks so far only.
    """
    _check(shares)
    return tuple(float(level) for level in _levels(tuple(shares), (alpha,))[0])


@dataclass(frozen=True, slots=True)
class Spending:
    """The looks so far, by the share of all items that each of them had."""

    shares: tuple[float, ...]

    def nominal(self, alpha: float) -> Array:
        """Return the level of each look, to a thousandth of it, so that `alpha` is spent over all of them."""
        return np.exp([np.interp(np.log(alpha), _logs(), column) for column in _table(self.shares).T])

    def spent(self, look: int, p_value: float) -> float:
        """Return the smallest alpha at which the look would reject with this p-value (1: at none)."""
        column = _table(self.shares)[:, look]
        if p_value <= 0.0:
            return 0.0
        place = np.log(p_value)
        if place >= column[-1]:
            return 1.0
        if place <= column[0]:  # below the table the two are proportional
            return float(_ALPHAS[0] * np.exp(place - column[0]))
        return float(np.exp(np.interp(place, column, _logs())))


@dataclass(frozen=True, slots=True)
class SequentialLaw:
    """The laws of a difference at every look so far (None: nothing bounded it then) as one law.

    Its interval is what the intervals of all looks have in common. Where they have nothing in common, which
    happens in fewer than `1 - level` of the runs, it is the last look's.
    """

    looks: tuple[Look, ...]

    @property
    def spending(self) -> Spending:
        """How the error is spent over the looks."""
        return Spending(tuple(look.share for look in self.looks))

    @property
    def p_value(self) -> float | None:
        """The two-sided p-value of no difference, valid at any time; None where the last look has none."""
        if self.looks[-1].p_value is None:
            return None
        known = [(place, p) for place, look in enumerate(self.looks) if (p := look.p_value) is not None]
        return min(self.spending.spent(place, p) for place, p in known)

    def interval(self, level: float) -> Bounds:
        """Return the two-sided interval, valid at every look together; infinite where nothing bounds it."""
        found = [
            law.interval(1.0 - float(alpha))
            for law, alpha in zip(self._laws(), self.spending.nominal(1.0 - level), strict=True)
            if law is not None and alpha > _TINY
        ]
        if not found:
            return -math.inf, math.inf
        low, high = max(low for low, _ in found), min(high for _, high in found)
        return (low, high) if low <= high else found[-1]

    def p_above(self, value: float) -> float:
        """Return the one-sided p-value of the difference being `value` or less, valid at any time."""
        above, below = self._tails(value)
        return above if above < 0.5 else max(0.5, 1.0 - below)

    def p_below(self, value: float) -> float:
        """Return the one-sided p-value of the difference being `value` or more, valid at any time."""
        above, below = self._tails(value)
        return below if below < 0.5 else max(0.5, 1.0 - above)

    def _laws(self) -> list[Law | None]:
        return [law_of_look(look) for look in self.looks]

    def _tails(self, value: float) -> tuple[float, float]:
        above, below = 1.0, 1.0
        for place, law in enumerate(self._laws()):
            if law is not None:
                above = min(above, self.spending.spent(place, min(1.0, 2.0 * law.p_above(value))))
                below = min(below, self.spending.spent(place, min(1.0, 2.0 * law.p_below(value))))
        return above / 2.0, below / 2.0


def law_of_look(look: Look) -> Law | None:
    """Return the law that a look alone gives; None where nothing bounded the difference.

    Right-or-wrong items have the cautious one. At the first looks few items have changed: with Dirichlet's
    alone, 5.0 % instead of 2.5 % of the models that lose 5 % of 100 items and gain none would be called not
    worse within 5 points.
    """
    if not look.bounded:
        return None
    if look.variance_parts:
        return StudentLaw(look.center or 0.0, look.variance_parts)
    share = 1.0 if look.effective_n is None else look.effective_n / look.n
    return CautiousLaw(look.higher * share, look.lower * share, look.ties * share)


def _check(shares: Sequence[float]) -> None:
    steps = np.diff([0.0, *shares])
    if not len(shares) or (steps <= 0).any() or shares[-1] > 1.0:
        raise InputError(f"looks must have growing shares of all items, above 0 and up to 1, got {shares}")


@functools.cache
def _logs() -> Array:
    return np.log(_ALPHAS)


@functools.lru_cache(maxsize=256)
def _table(shares: tuple[float, ...]) -> Array:
    """Logarithms of nominal levels, by alpha and look."""
    _check(shares)
    return np.log(_levels(shares, _ALPHAS))


def _levels(shares: tuple[float, ...], alphas: tuple[float, ...]) -> Array:
    """Nominal levels by alpha and look.

    Z_k sqrt(t_k) is a Brownian motion at t_k. Its density among the paths that have stayed inside is carried
    from look to look on Gauss-Legendre nodes.
    """
    from scipy.special import ndtr

    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    alpha = np.array(alphas)[:, None]
    at: Array = np.zeros((len(alphas), 1))  # all of it at 0
    density: Array = np.ones((len(alphas), 1))
    levels: list[Array] = []
    before = 0.0
    for share in shares:
        spread, increment = np.sqrt(share - before), alpha * (share**POWER - before**POWER)
        bound = _bound(at, density, spread, increment)
        levels.append(2.0 * ndtr(-bound / np.sqrt(share)))
        inside = bound * nodes
        steps = (inside[:, None, :] - at[:, :, None]) / spread
        kernel = np.exp(-0.5 * steps**2) / (spread * np.sqrt(2.0 * np.pi))
        density = np.einsum("ai,aij->aj", density, kernel) * bound * weights
        at, before = inside, share
    return np.concatenate(levels, axis=1)


def _bound(at: Array, density: Array, spread: float, increment: Array) -> Array:
    """The bound that the paths leave with probability `increment` in the next step, by bisection."""
    from scipy.special import ndtr

    low, high = np.zeros_like(increment), np.full_like(increment, 40.0)
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        out = density * (ndtr((at - middle) / spread) + ndtr((-at - middle) / spread))
        more = out.sum(axis=1, keepdims=True) > increment
        low, high = np.where(more, middle, low), np.where(more, high, middle)
    return high
