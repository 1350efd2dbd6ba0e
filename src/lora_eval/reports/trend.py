"""Several comparisons in a row, such as versions of an adapter: what each made of its base, task by task.

Each version is tested against its own base, and versions are not tested against each other: the words are
those of the single comparisons. A line is broken where its neighbours asked other items or had another base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lora_eval.records import Arm, Comparison, Pair, TaskComparison
from lora_eval.reports.charts import Axis, Tick, make_axis
from lora_eval.reports.gates import MARKS
from lora_eval.reports.lines import Chart, Dot, Line, svg_points
from lora_eval.reports.numbers import difference_text, gain, interval_text, is_share, unit_name
from lora_eval.reports.page import render_template
from lora_eval.reports.words import LABELS, base_arm, mark, row_text, rows_of, tuned_arms

# Shapes of points, so that no colour is needed: up and down for what is better and worse, else a circle.
MARKERS = {"better": "triangle", "worse": "down"}


@dataclass(frozen=True, slots=True)
class Source:
    """A stored comparison: its name on the page, the address of its report from there, and when it was made
    (`created` of the record, else the time of its file), in UTC.
    """

    label: str
    href: str
    time: str
    comparison: Comparison


@dataclass(frozen=True, slots=True)
class Version:
    """One arm of a comparison, numbered from 1 in the order of the page."""

    number: int
    label: str
    href: str
    time: str
    arm: Arm
    comparison: Comparison

    @property
    def items(self) -> tuple[object, ...]:
        """What must agree for two versions to stand on one line: the items and the base's weights."""
        return (self.comparison.suite.get("fingerprint"), base_arm(self.comparison).fingerprint)

    @property
    def made(self) -> str:
        """When it was made: `2026-11-26 01:02 UTC`, or the text as it is where it is no such time."""
        if not self.time.endswith("+00:00"):
            return self.time
        return f"{self.time[:16].replace('T', ' ')} UTC"

    @property
    def gate(self) -> str:
        """The gate's verdict, empty where there is none."""
        return self.comparison.gate.verdict if self.comparison.gate else ""


@dataclass(frozen=True, slots=True)
class Cell:
    """One version on one task."""

    version: Version
    task: TaskComparison
    pair: Pair

    @property
    def verdict(self) -> str:
        """The mark of all tables."""
        return mark(self.pair)

    @property
    def text(self) -> str:
        """The difference, as the report has it."""
        return difference_text(self.task, self.pair)

    @property
    def interval(self) -> str:
        """Its interval, as the report has it."""
        return interval_text(self.task, self.pair)


@dataclass(frozen=True, slots=True)
class TaskTrend:
    """One task over the versions: None where a version did not ask it."""

    name: str
    metric: str
    role: str
    unit: str
    cells: tuple[Cell | None, ...]
    chart: Chart | None


def list_versions(sources: Sequence[Source]) -> list[Version]:
    """Return every tuned arm of every comparison, in order; arms are named where a comparison has several."""
    found = [
        (source, arm, arms) for source in sources for arms in [tuned_arms(source.comparison)] for arm in arms
    ]
    return [
        Version(
            number,
            f"{source.label}: {arm.name}" if len(arms) > 1 else source.label,
            source.href,
            source.time,
            arm,
            source.comparison,
        )
        for number, (source, arm, arms) in enumerate(found, 1)
    ]


def list_trends(versions: Sequence[Version]) -> list[TaskTrend]:
    """Return every task that carries a verdict in one of the versions, in the order of the versions."""
    cells: dict[tuple[str, str, str], dict[int, Cell]] = {}
    for version in versions:
        for task, pair in rows_of(version.comparison, base_arm(version.comparison).name, version.arm.name):
            key = (task.task, task.metric, task.filter)
            cells.setdefault(key, {})[version.number] = Cell(version, task, pair)
    return [_trend(own, versions) for own in cells.values()]


def trend_headline(versions: Sequence[Version], trends: Sequence[TaskTrend]) -> str:
    """Say what the last version's own comparison found."""
    last = [trend.cells[-1] for trend in trends]
    counts = [(word, sum(cell is not None and cell.verdict == word for cell in last)) for word in LABELS]
    told = ", ".join(f"{LABELS[word]} on {count}" for word, count in counts if count)
    asked = sum(cell is not None for cell in last)
    newest = versions[-1]
    return (
        f"{len(versions)} versions; the last one ({newest.label}) against its base: {told} of {asked} tasks."
    )


def trend_notes(versions: Sequence[Version]) -> list[str]:
    """Say where versions cannot be compared with the one before, and what the page does not say."""
    notes = [
        "Each version is tested against its own base; no test compares two versions. To test two of them, "
        "give both as arms of one comparison: compare --adapter old=PATH --adapter new=PATH --pair old,new."
    ]
    for before, after in pairwise(versions):
        what = [
            name
            for name, one, other in zip(("items", "base"), before.items, after.items, strict=True)
            if one != other
        ]
        if what:
            notes.append(
                f"{before.number} to {after.number}: not the same {' and '.join(what)}; the lines break."
            )
    return notes


def render_trend_html(sources: Sequence[Source]) -> str:
    """Return the trend as one HTML page without scripts; each point leads to its version's report."""
    return render_template("trend.html.jinja", **_values(sources))


def render_trend_markdown(sources: Sequence[Source]) -> str:
    """Return the same as Markdown."""
    from lora_eval.reports.markdown import table_cell

    return render_template("trend.md.jinja", **_values(sources), cell=table_cell)


def _values(sources: Sequence[Source]) -> dict[str, object]:
    versions = list_versions(sources)
    trends = list_trends(versions)
    return {
        "versions": versions,
        "trends": trends,
        "headline": trend_headline(versions, trends),
        "notes": trend_notes(versions),
        "marks": MARKS,
        "gated": any(version.gate for version in versions),
    }


def _trend(own: dict[int, Cell], versions: Sequence[Version]) -> TaskTrend:
    first = next(iter(own.values())).task
    cells = tuple(own.get(version.number) for version in versions)
    return TaskTrend(first.task, first.metric, first.role, unit_name(first), cells, _chart(cells))


def _chart(cells: Sequence[Cell | None]) -> Chart | None:
    """The gains of a task: up is better, whatever the metric's direction. None where nothing was measured."""
    gains = [None if cell is None else _gains(cell) for cell in cells]
    values = [value for own in gains if own for value in own if value is not None]
    if not values:
        return None
    task = next(cell.task for cell in cells if cell)
    y = make_axis(values, parts=4, smallest=1.0 if is_share(task) else 1e-9)
    x = Axis(0.5, len(cells) + 0.5, 1.0)
    runs = _unbroken(cells, gains)
    unit = unit_name(task)
    return Chart(
        label=f"{task.task}: gain over the base for each version, {unit}",
        caption=f"{unit}, up is better",
        x_ticks=tuple(Tick(x.at(place), str(place), False) for place in range(1, len(cells) + 1)),
        y_ticks=tuple(y.ticks(signed=True)),
        series=tuple(_line(run, x, y) for run in runs),
        links=True,
    )


_Gains = tuple[float | None, float, float | None]
_Run = list[tuple[Cell, _Gains]]


def _gains(cell: Cell) -> _Gains | None:
    factor = 100.0 if is_share(cell.task) else 1.0
    pair = cell.pair
    low, middle, high = (gain(cell.task, value) for value in (pair.ci_low, pair.difference, pair.ci_high))
    if middle is None:
        return None
    if not cell.task.higher_is_better:
        low, high = high, low
    return (None if low is None else factor * low, factor * middle, None if high is None else factor * high)


def _unbroken(cells: Sequence[Cell | None], gains: Sequence[_Gains | None]) -> list[_Run]:
    """Neighbours that asked the same items of the same base."""
    runs = list[_Run]()
    before: Cell | None = None
    for cell, own in zip(cells, gains, strict=True):
        if cell is None or own is None:
            before = None
            continue
        if before is None or before.version.items != cell.version.items:
            runs.append([])
        runs[-1].append((cell, own))
        before = cell
    return runs


def _line(run: _Run, x: Axis, y: Axis) -> Line:
    places = [(x.at(cell.version.number), y.at(own[1])) for cell, own in run]
    bounded = [(cell, own) for cell, own in run if own[0] is not None and own[2] is not None]
    upper = [(x.at(cell.version.number), y.at(own[2])) for cell, own in bounded if own[2] is not None]
    lower = [(x.at(cell.version.number), y.at(own[0])) for cell, own in bounded if own[0] is not None]
    if len(bounded) == 1:  # a band of one version is as wide as its point
        upper = [(upper[0][0] - 1.5, upper[0][1]), (upper[0][0] + 1.5, upper[0][1])]
        lower = [(lower[0][0] - 1.5, lower[0][1]), (lower[0][0] + 1.5, lower[0][1])]
    dots = tuple(
        Dot(
            *place,
            tooltip=_tooltip(cell),
            verdict=cell.verdict,
            href=cell.version.href,
            marker=MARKERS.get(cell.verdict, "circle"),
        )
        for place, (cell, _) in zip(places, run, strict=True)
    )
    return Line("arm1", "circle", svg_points(places), dots, band=svg_points([*upper, *reversed(lower)]))


def _tooltip(cell: Cell) -> str:
    version = cell.version
    return f"{version.number}. {version.label}, {row_text((cell.task, cell.pair))}: {LABELS[cell.verdict]}"
