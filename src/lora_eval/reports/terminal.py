"""The comparison as a screen of text: what was found, then every figure. Fits 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_eval.records import Comparison, TaskComparison, Verification
from lora_eval.reports.numbers import DASH, difference_text, interval_text, is_share, mean_text, p_text
from lora_eval.reports.scores import score_lines
from lora_eval.reports.trend import Cell, Version, list_trends, trend_headline, trend_notes
from lora_eval.reports.words import (
    GLYPHS,
    LABELS,
    base_arm,
    findings,
    headline,
    mark,
    rows_of,
    tuned_arms,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

STYLES = {
    "better": "bold blue",
    "worse": "bold red",
    "not_worse": "cyan",
    "inconclusive": "yellow",
    "same": "dim",
}
TONES = {"gain": "bold blue", "loss": "bold red", "safe": "cyan", "open": "yellow"}


def print_comparison(
    comparison: Comparison, console: Console, verifications: Sequence[Verification] = ()
) -> None:
    """Print headline, findings and tables to a rich console, as wide as it is."""
    from rich.padding import Padding
    from rich.text import Text

    console.print()
    console.print(Text(headline(comparison), style="bold"))
    for finding in findings(comparison, verifications):
        text = Text.assemble((finding.heading, TONES[finding.tone]), "  ", finding.text)
        console.print()
        console.print(text)
        for line in finding.lines:
            console.print(Padding(_styled(line), (0, 0, 0, 2)))
    console.print()
    console.print(means_table(comparison, console.width))
    base = base_arm(comparison)
    for arm in tuned_arms(comparison):
        if rows_of(comparison, base.name, arm.name):
            console.print(pair_table(comparison, base.name, arm.name))
    console.print(Text(legend(), style="dim"))


def means_table(comparison: Comparison, width: int = 80) -> Table:
    """Every task and arm, with the verdict's mark against the base. Where the names of arms leave the tasks
    no room, letters stand for them.
    """
    from rich.text import Text

    table = _table("Figures of every arm (marks: against the base)")
    table.add_column("task", overflow="fold", ratio=1)
    table.add_column("n", justify="right")
    names = [arm.name for arm in comparison.arms]
    if sum(max(11, len(name) + 2) for name in names) > width - 30:
        letters = [chr(ord("A") + place % 26) for place in range(len(names))]
        table.caption = Text("\n".join(f"{key}  {name}" for key, name in zip(letters, names, strict=True)))
        names = letters
    for name in names:
        table.add_column(Text(name), justify="right", overflow="fold")
    base = base_arm(comparison).name
    for task in comparison.tasks:
        if task.primary:
            marks = {pair.b: mark(pair) for pair in task.pairs if pair.a == base}
            cells = [_cell(task, arm.name, marks.get(arm.name)) for arm in comparison.arms]
            table.add_row(Text(_task_name(task)), f"{task.n:,}", *cells)
    for place, score in enumerate(score_lines(comparison)):
        if place == 0:
            table.add_section()
        means = [f"{score.means.get(arm.name, DASH)}  " for arm in comparison.arms]
        table.add_row(Text(score.name, style="italic"), "", *means)
    return table


def pair_table(comparison: Comparison, a: str, b: str) -> Table:
    """Differences of one pair with interval, adjusted p-value and verdict."""
    from rich.text import Text

    rows = rows_of(comparison, a, b)
    level = f"{100 * rows[0][1].level:g} %"
    table = _table(f"{b} against {a}")
    table.add_column("task", overflow="fold", ratio=1)
    table.add_column("change", justify="right")
    table.add_column(f"{level} interval", justify="right")
    table.add_column("p (Holm)", justify="right")
    table.add_column("verdict", no_wrap=True)
    for task, pair in rows:
        unit = "" if is_share(task) else "*"
        table.add_row(
            Text(task.task),
            difference_text(task, pair) + unit,
            interval_text(task, pair),
            p_text(pair.p_adjusted),
            Text(f"{GLYPHS[mark(pair)]} {LABELS[mark(pair)]}", style=STYLES[mark(pair)]),
        )
    for place, score in enumerate(score_lines(comparison)):
        own = score.pair(a, b)
        if own is not None:
            if place == 0:
                table.add_section()
            table.add_row(Text(score.name, style="italic"), own.difference, own.interval, own.p + "†", "")
    notes = ["* in the metric's own units"] if any(not is_share(task) for task, _ in rows) else []
    notes += ["† not adjusted"] if any(score.pair(a, b) for score in score_lines(comparison)) else []
    if notes:
        table.caption = "; ".join(["changes in points", *notes])
    return table


def print_trend(versions: Sequence[Version], console: Console) -> None:
    """Print the difference from the base for each task and version; the last versions that fit the width."""
    from rich.text import Text

    trends = list_trends(versions)
    console.print()
    console.print(Text(trend_headline(versions, trends), style="bold"))
    console.print()
    shown = versions[-max(1, (console.width - 30) // 10) :]
    for version in shown:
        gate = f"  gate {version.gate}" if version.gate else ""
        console.print(Text(f"{version.number}. {version.label}  {version.made}{gate}"))
    left_out = len(versions) - len(shown)
    table = _table("Difference from the base" + (f" ({left_out} earlier left out)" if left_out else ""))
    table.add_column("task", overflow="fold", ratio=1)
    for version in shown:
        table.add_column(str(version.number), justify="right", no_wrap=True)
    for trend in trends:
        cells = [_trend_cell(trend.cells[version.number - 1]) for version in shown]
        table.add_row(Text(trend.name if trend.unit == "points" else f"{trend.name}, {trend.unit}"), *cells)
    console.print(table)
    console.print(Text(legend(), style="dim"))
    for note in trend_notes(versions):
        console.print(Text(note))


def legend() -> str:
    """What the marks mean."""
    return "  ".join(f"{GLYPHS[word]} {LABELS[word]}" for word in LABELS)


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        expand=False,
    )


def _cell(task: TaskComparison, arm: str, word: str | None) -> Text:
    from rich.text import Text

    mean = mean_text(task, task.means.get(arm)) if arm in task.means else DASH
    return Text(f"{mean} {GLYPHS[word]}", style=STYLES[word]) if word else Text(f"{mean}  ")


def _trend_cell(cell: Cell | None) -> Text:
    from rich.text import Text

    if cell is None:
        return Text(f"{DASH}  ")
    return Text(f"{cell.text} {GLYPHS[cell.verdict]}", style=STYLES[cell.verdict])


def _task_name(task: TaskComparison) -> str:
    role = f" ({task.role})" if task.role != "other" else ""
    lower = "" if task.higher_is_better else ", less is better"
    return f"{task.task}{role}{lower}"


def _styled(line: str) -> Text:
    from rich.text import Text

    word = next((word for word, glyph in GLYPHS.items() if line.startswith(f"{glyph} ")), None)
    if word is None:
        return Text(line)
    return Text.assemble((line[0], STYLES[word]), line[1:])
