"""Forest plot of differences with their intervals, as inline SVG.

Made by hand and not with matplotlib: it needs no import of a second, its colours are the page's own
variables (light and dark), its text stays text, and each mark carries a tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from lora_eval.records import Comparison, Pair, TaskComparison
from lora_eval.reports.numbers import difference_text, gain, is_share
from lora_eval.reports.words import LABELS, mark, row_text

WIDTH, LABEL, RIGHT, LINE = 980, 220, 150, 22
MARKERS = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True, slots=True)
class Bar:
    """One interval on the plot's axis, in the direction that is better."""

    pair: Pair
    task: TaskComparison
    low: float | None
    middle: float
    high: float | None


def forest_svg(comparison: Comparison, reference: str) -> str:
    """Return the SVG of every arm against `reference`, in one panel for each unit of measure; empty text
    where nothing was compared with it.
    """
    arms = [arm.name for arm in comparison.arms]
    panels: dict[str, list[Bar]] = {}
    for task in comparison.tasks:
        for pair in task.pairs if task.primary else ():
            bar = _bar(task, pair) if pair.a == reference else None
            if bar is not None:
                panels.setdefault(_unit(task), []).append(bar)
    return "\n".join(_panel(unit, bars, arms) for unit, bars in panels.items())


def legend_html(comparison: Comparison, reference: str) -> str:
    """Return the markers of the arms that are compared with `reference`."""
    arms = [arm.name for arm in comparison.arms]
    pairs = [pair for task in comparison.tasks for pair in task.pairs if pair.a == reference]
    keys = []
    for name in dict.fromkeys(pair.b for pair in pairs):
        place = arms.index(name)
        marker = _marker(MARKERS[place % len(MARKERS)], 8, 8)
        keys.append(
            f'<span><svg viewBox="0 0 16 16" class="arm{place % 6}" aria-hidden="true">{marker}</svg>'
        )
        keys.append(f"{escape(name)}</span>")
    return "".join(keys)


def _unit(task: TaskComparison) -> str:
    if is_share(task):
        return "percentage points"
    if any(pair.ratio is not None for pair in task.pairs):
        return "percent less perplexity"
    return f"{task.metric.replace('_', ' ')}{'' if task.higher_is_better else ' (less is better)'}"


def _bar(task: TaskComparison, pair: Pair) -> Bar | None:
    values: list[float | None] = [pair.ci_low, pair.difference, pair.ci_high]
    if pair.ratio is not None:
        values = [None if r is None else r - 1 for r in (pair.ratio_low, pair.ratio, pair.ratio_high)]
    factor = 100.0 if is_share(task) or pair.ratio is not None else 1.0
    gains = [None if (better := gain(task, value)) is None else factor * better for value in values]
    if gains[1] is None:
        return None
    low, high = (gains[0], gains[2]) if task.higher_is_better else (gains[2], gains[0])
    return Bar(pair, task, low, gains[1], high)


def _panel(unit: str, bars: Sequence[Bar], arms: Sequence[str]) -> str:
    tasks = list(dict.fromkeys(bar.task.task for bar in bars))
    low, high, step = _axis(bars)
    top, height = 30, 30 + LINE * len(bars) + 8 * len(tasks) + 34
    plot = WIDTH - LABEL - RIGHT

    def x(value: float) -> float:
        return LABEL + plot * (value - low) / (high - low)

    bands, marks = list[str](), list[str]()
    y = float(top + 6)
    for number, name in enumerate(tasks):
        own = [bar for bar in bars if bar.task.task == name]
        depth = LINE * len(own) + 8
        if number % 2 == 0:
            bands.append(f'<rect class="band" x="0" y="{y:.1f}" width="{WIDTH}" height="{depth}"/>')
        role = f"{name} · {own[0].task.role}" if own[0].task.role != "other" else name
        marks.append(f'<text class="task" x="8" y="{y + 19:.1f}">{escape(_short(role))}</text>')
        marks += [
            _mark(bar, x, y + 15 + LINE * place, arms.index(bar.pair.b)) for place, bar in enumerate(own)
        ]
        y += depth
    opening = (
        f'<svg class="forest" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="Differences with intervals, {escape(unit)}">',
        f'<text class="axis-title" x="{LABEL}" y="16">worse &#8592; {escape(unit)} &#8594; better</text>',
    )
    return "\n".join([*opening, *bands, *_grid(x, low, high, step, top, height), *marks, "</svg>"])


def _grid(
    x: Callable[[float], float], low: float, high: float, step: float, top: int, height: int
) -> list[str]:
    lines = []
    bottom = height - 30
    for tick in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        value = tick * step
        kind = "zero" if tick == 0 else "grid"
        label = f"{value:+g}".replace("-", "−") if tick else "0"  # noqa: RUF001
        at = f"{x(value):.1f}"
        lines.append(f'<line class="{kind}" x1="{at}" x2="{at}" y1="{top}" y2="{bottom}"/>')
        lines.append(f'<text class="tick" x="{at}" y="{bottom + 18}">{label}</text>')
    return lines


def _mark(bar: Bar, x: Callable[[float], float], y: float, arm: int) -> str:
    verdict = mark(bar.pair)
    colour = f"arm{arm % 6}"
    parts = [f'<g class="{colour} {verdict}"><title>{escape(_tooltip(bar))}</title>']
    if bar.low is not None and bar.high is not None:
        start, end = f"{x(bar.low):.1f}", f"{x(bar.high):.1f}"
        parts.append(f'<line class="whisker" x1="{start}" x2="{end}" y1="{y}" y2="{y}"/>')
    parts.append(_marker(MARKERS[arm % len(MARKERS)], x(bar.middle), y))
    text = f"{difference_text(bar.task, bar.pair.difference)} {LABELS[verdict]}"
    parts.append(f'<text class="value" x="{WIDTH - RIGHT + 10}" y="{y + 4:.1f}">{escape(text)}</text>')
    return "".join([*parts, "</g>"])


def _tooltip(bar: Bar) -> str:
    return f"{bar.pair.b} against {bar.pair.a}, {row_text((bar.task, bar.pair))}: {LABELS[mark(bar.pair)]}"


def _marker(kind: str, x: float, y: float) -> str:
    if kind == "square":
        return f'<rect class="point" x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9"/>'
    if kind == "diamond":
        corners = [(x, y - 6), (x + 6, y), (x, y + 6), (x - 6, y)]
    elif kind == "triangle":
        corners = [(x, y - 6), (x + 5.5, y + 4.5), (x - 5.5, y + 4.5)]
    else:
        return f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
    return f'<polygon class="point" points="{points}"/>'


def _axis(bars: Sequence[Bar]) -> tuple[float, float, float]:
    """Low end, high end and step of the axis; 0 always lies on it. Differences far below a point or a
    percent look as small as they are.
    """
    smallest = 1.0 if is_share(bars[0].task) or bars[0].pair.ratio is not None else 1e-9
    ends = [0.0, *(v for bar in bars for v in (bar.low, bar.middle, bar.high) if v is not None)]
    span = max(max(ends) - min(ends), smallest)
    raw = span / 8
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw)
    return math.floor(min(ends) / step - 0.05) * step, math.ceil(max(ends) / step + 0.05) * step, step


def _short(text: str) -> str:
    """Long names lose their middle: names of one benchmark differ at the end."""
    return text if len(text) <= 28 else f"{text[:11]}…{text[-16:]}"
