"""Forest plot of differences with their intervals: what lies where, in the direction that is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_eval.records import Comparison, Pair, TaskComparison
from lora_eval.reports.charts import Axis, Tick, colour, make_axis, marker
from lora_eval.reports.numbers import difference_text, fixed, gain, is_share, supported_decimals
from lora_eval.reports.words import LABELS, mark, row_text


@dataclass(frozen=True, slots=True)
class Bar:
    """One interval: the places of its ends and middle in percent of the axis (None: no interval)."""

    arm: str
    colour: str
    marker: str
    low: float | None
    middle: float
    high: float | None
    verdict: str
    text: str
    tooltip: str


@dataclass(frozen=True, slots=True)
class TaskBars:
    """All arms of one task."""

    name: str
    role: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """Tasks of one unit of measure, on one axis; right of 0 is better."""

    unit: str
    ticks: tuple[Tick, ...]
    tasks: tuple[TaskBars, ...]


@dataclass(frozen=True, slots=True)
class _Gains:
    task: TaskComparison
    pair: Pair
    low: float | None
    middle: float
    high: float | None


def forest_panels(comparison: Comparison, reference: str) -> list[Panel]:
    """Return every arm against `reference`, one panel for each unit; none where nothing was compared."""
    arms = [arm.name for arm in comparison.arms]
    found: dict[str, list[_Gains]] = {}
    for task in comparison.tasks:
        for pair in task.pairs if task.primary else ():
            gains = _gains(task, pair) if pair.a == reference else None
            if gains is not None:
                found.setdefault(_unit(task), []).append(gains)
    return [_panel(unit, rows, arms) for unit, rows in found.items()]


def legend(comparison: Comparison, reference: str) -> list[tuple[str, str, str]]:
    """Return name, colour and marker of the arms that are compared with `reference`."""
    arms = [arm.name for arm in comparison.arms]
    names = dict.fromkeys(p.b for task in comparison.tasks for p in task.pairs if p.a == reference)
    return [(name, colour(arms.index(name)), marker(arms.index(name))) for name in names]


def _panel(unit: str, rows: Sequence[_Gains], arms: Sequence[str]) -> Panel:
    shares = is_share(rows[0].task) or rows[0].pair.ratio is not None
    # Differences far below a point or a percent look as small as they are.
    values = [value for row in rows for value in (row.low, row.middle, row.high) if value is not None]
    axis = make_axis(values, smallest=1.0 if shares else 1e-9)
    tasks = {row.task.task: row.task.role for row in rows}
    return Panel(
        unit,
        tuple(axis.ticks(signed=True)),
        tuple(
            TaskBars(
                name,
                role,
                tuple(_bar(row, axis, arms.index(row.pair.b)) for row in rows if row.task.task == name),
            )
            for name, role in tasks.items()
        ),
    )


def _bar(row: _Gains, axis: Axis, place: int) -> Bar:
    verdict = mark(row.pair)
    return Bar(
        arm=row.pair.b,
        colour=colour(place),
        marker=marker(place),
        low=None if row.low is None else axis.at(row.low),
        middle=axis.at(row.middle),
        high=None if row.high is None else axis.at(row.high),
        verdict=verdict,
        text=_bar_text(row),
        tooltip=f"{row.pair.b} against {row.pair.a}, {row_text((row.task, row.pair))}: {LABELS[verdict]}",
    )


def _bar_text(row: _Gains) -> str:
    """The difference as the axis counts it: for perplexities percent less, not their own units."""
    if row.pair.ratio is None:
        return difference_text(row.task, row.pair)
    decimals = supported_decimals(row.low, row.high)
    return f"{fixed(row.middle, 2 if decimals is None else decimals, signed=True)} %"


def _unit(task: TaskComparison) -> str:
    if is_share(task):
        return "percentage points"
    if any(pair.ratio is not None for pair in task.pairs):
        return "percent less perplexity"
    return f"{task.metric.replace('_', ' ')}{'' if task.higher_is_better else ' (less is better)'}"


def _gains(task: TaskComparison, pair: Pair) -> _Gains | None:
    values: list[float | None] = [pair.ci_low, pair.difference, pair.ci_high]
    if pair.ratio is not None:
        values = [None if r is None else r - 1 for r in (pair.ratio_low, pair.ratio, pair.ratio_high)]
    factor = 100.0 if is_share(task) or pair.ratio is not None else 1.0
    gains = [None if (better := gain(task, value)) is None else factor * better for value in values]
    if gains[1] is None:
        return None
    low, high = (gains[0], gains[2]) if task.higher_is_better else (gains[2], gains[0])
    return _Gains(task, pair, low, gains[1], high)
