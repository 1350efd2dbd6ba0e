"""Axes of the page's plots, in percent of their width and height.

Plots are made by template and not with matplotlib: that needs no import of a second, the colours are the
page's own variables (light and dark), text stays text and keeps its size on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from lora_eval.reports.numbers import fixed

MARKERS = ("circle", "square", "diamond", "triangle")
COLOURS = 6


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str
    zero: bool


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear axis from `low` to `high`, with round ticks `step` apart."""

    low: float
    high: float
    step: float

    def at(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 100 at the high end."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    def ticks(self, *, signed: bool = False) -> list[Tick]:
        """Round values on the axis; `signed` writes a plus before those above 0."""
        first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
        decimals = max(0, -math.floor(math.log10(self.step) + 1e-9))
        if round(self.step * 10**decimals, 6) % 1:  # 2.5, 0.25
            decimals += 1
        values = [number * self.step for number in range(first, last + 1)]
        return [
            Tick(self.at(value), fixed(value, decimals, signed=signed), abs(value) < self.step / 2)
            for value in values
        ]


def make_axis(values: Iterable[float], *, parts: int = 6, smallest: float = 1e-9, zero: bool = True) -> Axis:
    """Return an axis that holds all values, with some room at both ends.

    With `zero` 0 lies on it too. A span below `smallest` is not stretched: such values look as alike as they
    are. Without any value the axis goes from 0 to `smallest`.
    """
    ends = [*([0.0] if zero else []), *values] or [0.0]
    low, high = min(ends), max(ends)
    span = max(high - low, smallest, 1e-9 * max(abs(low), abs(high)))
    spare = (span - (high - low)) / 2
    low, high = low - spare, high + spare
    raw = span / parts
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * (1 - 1e-9))
    return Axis((math.floor(low / step - 0.05)) * step, (math.ceil(high / step + 0.05)) * step, step)


def marker(place: int) -> str:
    """The shape of the arm at that place: told apart by shape as well as by colour."""
    return MARKERS[place % len(MARKERS)]


def colour(place: int) -> str:
    """The page's class for the arm at that place."""
    return f"arm{place % COLOURS}"
