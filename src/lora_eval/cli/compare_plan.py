"""`compare --plan`: what the comparison will be able to find, before any model is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_eval.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from lora_eval.evaluate.selection import AnySuite
    from lora_eval.records import Comparison, Gate
    from lora_eval.stats.plan import AskedTask, Case, Plan, TaskPlan

_DASH = "–"  # noqa: RUF001 (typography)


def make_plan(
    suite: AnySuite, margins: Mapping[str, float], gate: Gate | None, earlier: Comparison | None
) -> Plan:
    """Return what a comparison on this suite can find.

    Raises:
        InputError: a margin is for a task that the suite does not have.
    """
    from lora_eval.schema import suggest
    from lora_eval.stats.plan import plan_comparison

    tasks = asked_tasks(suite, margins)
    known = list(dict.fromkeys((*(task.task for task in tasks), *suite.items)))
    for name in margins:
        if name not in known:
            raise InputError(f"--margin: no task '{name}'{suggest(name, known)}; tasks: {', '.join(known)}")
    return plan_comparison(tasks, gate=gate, earlier=earlier)


def check_tasks(gate: Gate, suite: AnySuite, source: Path) -> None:
    """Raise RecordError where a rule names no task; which arms there will be is not known here."""
    from lora_eval.stats.gate_rules import check_names

    tasks = dict.fromkeys((*(entry.task for entry in suite.record.entries()), *suite.groups, *suite.items))
    arms = [rule.arm for rule in gate.rules if rule.arm is not None]
    check_names(gate, list(tasks), arms, "base", str(source))


def asked_tasks(suite: AnySuite, margins: Mapping[str, float]) -> list[AskedTask]:
    """Return every task of the suite with its number of items and the metric of its verdict."""
    from lora_eval.evaluate.selection import leaves_of
    from lora_eval.stats.plan import AskedTask

    items, metrics, leaves = suite.items, suite.metrics, leaves_of(suite)
    found = []
    for entry in suite.record.entries():
        own = leaves[entry.task]
        first = next((name for leaf in own for name in metrics[leaf]), None)
        metric = entry.metric.partition(",")[0].strip() if entry.metric else first
        count = sum(len(items[leaf]) for leaf in own)
        found.append(AskedTask(entry.task, count, metric, margins.get(entry.task, entry.margin)))
    return found


def earlier_comparison(out: Path) -> Comparison | None:
    """Return the comparison that lies in `out`; None where there is none."""
    from lora_eval.records import Comparison
    from lora_eval.schema import read_record

    path = out / "comparison.json"
    return read_record(path, Comparison) if path.is_file() else None


def show_plan(plan: Plan, suite: str, *, as_json: bool) -> None:
    """Print the plan: as JSON, or as tables that fit 80 columns."""
    if as_json:
        click.echo(json.dumps({"suite": suite, **asdict(plan)}, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console()
    console.print(plan_table(plan, suite))
    for task in plan.tasks:
        if task.reason:
            console.print(f"{task.task}: {task.reason}", markup=False, highlight=False)
    if any(case.rules for task in plan.tasks for case in task.cases):
        console.print(rules_table(plan))


def plan_table(plan: Plan, suite: str) -> Table:
    """Every task under each assumption: what is detectable, and how many items would find how much."""
    table = _table(
        f"What {suite} can find ({plan.power:.0%} power, {plan.level:.0%} level, {plan.tests} tests)"
    )
    table.add_column("task", overflow="fold", ratio=1)
    for name in ("items", "changed", "finds", "n for 2", "n for 5", "n for margin"):
        table.add_column(name, justify="right")
    for task in plan.tasks:
        for number, case in enumerate(task.cases):
            shown = (task.task, f"{task.items:,}") if number == 0 else ("", "")
            table.add_row(*shown, *_case_cells(task, case))
        if not task.cases:
            table.add_row(task.task, f"{task.items:,}", *[_DASH] * 5)
    measured = " (* measured by the comparison in --out)" if _is_measured(plan) else ""
    table.caption = (
        f"changed: items that the arms answer differently, assumed{measured}; finds: smallest difference "
        "found, in points (+ in the metric's units); n for 2, 5: items that find 2 or 5 points, all after "
        "Holm's correction; n for margin: items that show it held if nothing changed. Metrics other than "
        "perplexities are taken as shares from 0 to 1"
    )
    return table


def rules_table(plan: Plan) -> Table:
    """Every rule of the gate on every task: the true gain with which it passes."""
    table = _table("The gate (gains in points; each bound one-sided at the gate's level)")
    table.add_column("rule", justify="right")
    table.add_column("task", overflow="fold", ratio=1)
    for name in ("changed", "bound above", "passes at", "n if unchanged"):
        table.add_column(name, justify="right")
    for task in plan.tasks:
        for case in task.cases:
            for rule in case.rules:
                table.add_row(
                    str(rule.rule),
                    task.task,
                    _changed(case),
                    _points(task, rule.threshold),
                    _points(task, rule.passes_at),
                    f"{rule.items:,}" if rule.items is not None else _DASH,
                )
    table.caption = "passes at: the true gain with which the rule passes four times in five"
    return table


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(
        title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )


def _case_cells(task: TaskPlan, case: Case) -> list[str]:
    needed: dict[float | str, str] = {
        "margin" if each.margin else each.difference: f"{each.items:,}" for each in case.needed
    }
    ways: tuple[float | str, ...] = (0.02, 0.05, "margin")
    cells = [needed.get(way, _DASH) for way in ways]
    return [_changed(case), _points(task, case.detectable, signed=False), *cells]


def _changed(case: Case) -> str:
    mark = "*" if case.source != "assumed" else ""
    return f"{100 * case.changed:.3g} %{mark}" if case.changed is not None else f"{_DASH}{mark}"


def _points(task: TaskPlan, value: float | None, *, signed: bool = True) -> str:
    from lora_eval.stats.pairing import LIKELIHOOD_METRICS

    if value is None:
        return _DASH
    sign = "+" if signed else ""
    if task.metric in LIKELIHOOD_METRICS:
        return f"{value:{sign}.2g}+"
    return f"{100 * value:{sign}.1f}"


def _is_measured(plan: Plan) -> bool:
    return any(case.source != "assumed" for task in plan.tasks for case in task.cases)
