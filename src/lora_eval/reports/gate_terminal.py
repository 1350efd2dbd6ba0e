"""The gate as a screen of text: its verdict, a table of checks for each arm, and why some did not pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_eval.records import Comparison, GateCheck
from lora_eval.reports.gates import CheckLine, bound_texts, gate_lines, gate_sentence
from lora_eval.reports.numbers import DASH

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

STYLES = {"PASS": "bold blue", "FAIL": "bold red", "INCONCLUSIVE": "yellow"}
_Row = tuple[GateCheck, CheckLine]


def verdict_line(comparison: Comparison) -> str:
    """`FAIL. The gate fails: 1 of 4 checks.` Empty where there is no gate."""
    gate = comparison.gate
    return "" if gate is None else f"{gate.verdict}. {gate_sentence(gate)}"


def print_gate(comparison: Comparison, console: Console) -> None:
    """Print the verdict, a table for each arm, and the reasons of what did not pass; fits 80 columns."""
    from rich.padding import Padding
    from rich.text import Text

    gate = comparison.gate
    if gate is None:
        return
    rows = list(zip(gate.checks, gate_lines(comparison), strict=True))
    console.print()
    console.print(Text(verdict_line(comparison), style=STYLES[gate.verdict]))
    for pair in dict.fromkeys(line.pair for _, line in rows):
        own = [row for row in rows if row[1].pair == pair]
        console.print()
        console.print(_table(own, pair, gate.level))
        for _, line in own:
            if line.verdict != "PASS":
                head = f"  {_task(line, own)}, {line.rule}"
                console.print(Text.assemble((line.verdict, STYLES[line.verdict]), head))
                console.print(Padding(Text(line.reason), (0, 0, 0, 2)))
    console.print(Text("gains in the better direction, in the metric's own units; or the ratio", style="dim"))
    for note in gate.notes:
        console.print(Text(f"Note: {note}.", style="yellow"))


def _table(rows: Sequence[_Row], pair: str, level: float) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=pair, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("verdict", no_wrap=True)
    table.add_column("task", overflow="fold")
    table.add_column("asked", overflow="fold")
    table.add_column("found", justify="right", no_wrap=True)
    table.add_column(f"bounds, {100 * level:g} %", justify="right", no_wrap=True)
    for check, line in rows:
        verdict = Text(line.verdict, style=STYLES[line.verdict])
        table.add_row(
            verdict,
            Text(_task(line, rows)),
            Text(line.rule),
            line.found,
            " to ".join(bound_texts(check) or (DASH,)),
        )
    return table


def _task(line: CheckLine, rows: Sequence[_Row]) -> str:
    """The task, with its metric where two of them are checked."""
    metrics = {other.metric for _, other in rows if other.task == line.task}
    return line.task if len(metrics) == 1 else f"{line.task} {line.metric}"
