"""The gate in words: one sentence, and a row for each check. Numbers are in the units of the gate's file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_eval.records import GateCheck, GateResult, GateVerdict

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

STYLES: dict[GateVerdict, str] = {"PASS": "bold blue", "FAIL": "bold red", "INCONCLUSIVE": "yellow"}
_DASH = "–"  # noqa: RUF001 (typography)


@dataclass(frozen=True, slots=True)
class GateRow:
    """One check as text: what was asked of what, what was seen, its bounds, and why it came out so."""

    verdict: GateVerdict
    rule: str
    task: str
    arm: str
    asked: str
    seen: str
    bounds: str
    reasons: tuple[str, ...]


def gate_sentence(result: GateResult) -> str:
    """`Gate: FAIL, 1 failed and 1 undecided of 4 checks (bounds one-sided at 95 %).`"""
    verdicts = [check.verdict for check in result.checks]
    checks = "check" if len(verdicts) == 1 else f"{len(verdicts)} checks"
    if result.verdict == "PASS":
        said = "its check holds" if len(verdicts) == 1 else f"all {checks} hold"
    else:
        words: dict[GateVerdict, str] = {"FAIL": "failed", "INCONCLUSIVE": "undecided"}
        counts = [
            f"{verdicts.count(verdict)} {word}" for verdict, word in words.items() if verdict in verdicts
        ]
        said = f"{' and '.join(counts)} of {checks if len(verdicts) > 1 else '1 check'}"
    return f"Gate: {result.verdict}, {said} (bounds one-sided at {_level(result.level)})."


def gate_rows(result: GateResult) -> list[GateRow]:
    """Return every check as text, in the order of the rules; a metric is named where its task has two."""
    metrics: dict[str, set[str]] = {}
    for check in result.checks:
        metrics.setdefault(check.task, set()).add(_metric(check))
    return [_row(check, named=len(metrics[check.task]) > 1) for check in result.checks]


def print_gate(result: GateResult, console: Console) -> None:
    """Print the sentence, a table for each arm, and the reasons of what did not pass; fits 80 columns."""
    from rich.padding import Padding
    from rich.text import Text

    rows = gate_rows(result)
    arms = list(dict.fromkeys(row.arm for row in rows))
    console.print()
    console.print(Text(gate_sentence(result), style=STYLES[result.verdict]))
    for arm in arms:
        own = [row for row in rows if row.arm == arm]
        console.print()
        console.print(_table(own, f"{arm} against {result.checks[0].a}", result.level))
        for row in own:
            if row.verdict != "PASS":
                head = f"  {row.task}, {row.asked} ({row.rule})"
                console.print(Text.assemble((row.verdict, STYLES[row.verdict]), head))
                for reason in row.reasons:
                    console.print(Padding(Text(reason), (0, 0, 0, 2)))
    for note in result.notes:
        console.print(Text(f"Note: {note}.", style="yellow"))


def check_reasons(check: GateCheck) -> tuple[str, ...]:
    """The check's reasons, and how many items would decide where that is known."""
    needed = () if check.n_needed is None else (f"about {check.n_needed:,} items would probably decide it",)
    return (*check.reasons, *needed)


def _row(check: GateCheck, *, named: bool) -> GateRow:
    ratio = check.measure == "ratio"
    digits = _digits(check.low, check.high)
    bounds = _DASH
    if check.low is not None and check.high is not None:
        ends = (_number(end, digits, signed=not ratio) for end in (check.low, check.high))
        bounds = " to ".join(ends)
    return GateRow(
        verdict=check.verdict,
        rule=f"rules[{check.rule}]",
        task=f"{check.task} {_metric(check)}" if named else check.task,
        arm=check.b,
        asked=f"{check.condition} {check.limit:g}",
        seen=_DASH if check.estimate is None else _number(check.estimate, digits, signed=not ratio),
        bounds=bounds,
        reasons=check_reasons(check),
    )


def _metric(check: GateCheck) -> str:
    return check.metric if check.filter == "none" else f"{check.metric},{check.filter}"


def _table(rows: Sequence[GateRow], title: str, level: float) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        expand=False,
        caption_justify="left",
    )
    table.add_column("verdict", no_wrap=True)
    table.add_column("task", overflow="fold")
    table.add_column("asked", overflow="fold")
    table.add_column("seen", justify="right", no_wrap=True)
    table.add_column(f"bounds, {_level(level)}", justify="right", no_wrap=True)
    for row in rows:
        verdict = Text(row.verdict, style=STYLES[row.verdict])
        table.add_row(verdict, Text(row.task), Text(row.asked), row.seen, row.bounds)
    table.caption = "gains in the better direction, in the metric's own units; or the ratio"
    return table


def _digits(low: float | None, high: float | None) -> int:
    """Decimals that the width of the interval supports: two digits of it."""
    if low is None or high is None or not high > low:
        return 4
    return min(8, max(0, 1 - math.floor(math.log10(high - low))))


def _number(value: float, digits: int, *, signed: bool) -> str:
    text = f"{value:{'+' if signed else ''},.{digits}f}"
    return text.lstrip("+-") if float(text.replace(",", "")) == 0 else text


def _level(level: float) -> str:
    return f"{100 * level:g} %"
