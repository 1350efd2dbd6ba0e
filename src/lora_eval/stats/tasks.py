"""What a comparison tests: one unit for each task, metric and filter, with the metric its verdict rests on.

A group (`mmlu`) is a unit of its own whose items are those of its tasks; verdict and correction rest on the
group, and its tasks are reported beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_eval.errors import InputError
from lora_eval.records import EvalSuite, LoadedRun, SampleRow, TaskEntry, TaskResult
from lora_eval.schema import suggest
from lora_eval.stats.pairing import aggregate

MetricName = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Unit:
    """One line of the comparison. `leaves` are the tasks whose items it holds (itself, or a group's)."""

    task: str
    leaves: tuple[str, ...]
    metric: str
    filter: str
    higher_is_better: bool
    role: str
    primary: bool
    margin: float | None

    def figure(self, loaded: LoadedRun) -> float | None:
        """lm-eval's own figure of this unit; None where it gave none."""
        found = _result(loaded, self.task, self.metric, self.filter)
        return found.value if found else None

    def mean(self, loaded: LoadedRun, rows: Sequence[SampleRow]) -> float | None:
        """lm-eval's figure, else (a group without one) the same figure made from the items."""
        found = _result(loaded, self.task, self.metric, self.filter)
        return found.value if found else aggregate(rows, self.metric)


def list_units(
    runs: Mapping[str, LoadedRun],
    suite: EvalSuite | None,
    groups: Mapping[str, Sequence[str]],
    margins: Mapping[str, float],
) -> list[Unit]:
    """Return every unit in the order of the suite, a task's primary metric first, a group before its tasks.

    Raises:
        InputError: the suite's metric is not among the task's, a margin names no task, or a metric's
            direction is unknown.
    """
    metrics = _metrics_of_tasks(runs)
    entries = _entries(list(metrics), suite, groups)
    _check_margins(margins, [*entries, *metrics])
    units: list[Unit] = []
    for name, (entry, leaves) in entries.items():
        margin = margins.get(name, entry.margin)
        own = _units_of(runs, entry, leaves, metrics, margin)
        units += own
        if leaves != (name,):
            for leaf in leaves:
                inner = TaskEntry(task=leaf, metric=entry.metric, role=entry.role)
                units += _units_of(runs, inner, (leaf,), metrics, None, judged=False)[:1]
    return units


def _metrics_of_tasks(runs: Mapping[str, LoadedRun]) -> dict[str, list[MetricName]]:
    """Every task that has items, with its (metric, filter) pairs: in the order of lm-eval's results, then
    those that only items have.
    """
    found: dict[str, dict[MetricName, None]] = {}
    for loaded in runs.values():
        tasks = dict.fromkeys(row.task for row in loaded.rows)
        for result in loaded.run.results:
            if result.task in tasks:
                found.setdefault(result.task, {})[(result.metric, result.filter)] = None
        for row in loaded.rows:
            known = found.setdefault(row.task, {})
            for metric in row.metrics:
                known[(metric, row.filter)] = None
    return {task: list(names) for task, names in found.items()}


def _entries(
    tasks: Sequence[str], suite: EvalSuite | None, groups: Mapping[str, Sequence[str]]
) -> dict[str, tuple[TaskEntry, tuple[str, ...]]]:
    """Suite entry and leaf tasks by the name of task or group."""
    entries = {entry.task: entry for entry in suite.entries()} if suite else {}
    owners = {leaf: group for group, leaves in groups.items() for leaf in leaves}
    names: dict[str, list[str]] = {name: [] for name in entries}
    for task in tasks:
        owner = task if task in entries else owners.get(task) or _by_prefix(task, list(entries)) or task
        names.setdefault(owner, []).append(task)
    return {
        name: (entries.get(name, TaskEntry(task=name)), tuple(leaves))
        for name, leaves in names.items()
        if leaves
    }


def _by_prefix(task: str, groups: Sequence[str]) -> str | None:
    """The longest entry that the task's name continues: lm-eval names a group's tasks `group_...`."""
    fitting = [name for name in groups if task.startswith(f"{name}_")]
    return max(fitting, key=len, default=None)


def _units_of(
    runs: Mapping[str, LoadedRun],
    entry: TaskEntry,
    leaves: tuple[str, ...],
    metrics: Mapping[str, Sequence[MetricName]],
    margin: float | None,
    *,
    judged: bool = True,
) -> list[Unit]:
    names = list(dict.fromkeys(name for leaf in leaves for name in metrics[leaf]))
    main = _main_metric(entry, names)
    ordered = [main, *(name for name in names if name != main)]
    return [
        Unit(
            task=entry.task,
            leaves=leaves,
            metric=metric,
            filter=filter_name,
            higher_is_better=_direction(runs, (entry.task, *leaves), metric, filter_name),
            role=entry.role,
            primary=judged and (metric, filter_name) == main,
            margin=margin if (metric, filter_name) == main else None,
        )
        for metric, filter_name in ordered
    ]


def _main_metric(entry: TaskEntry, names: Sequence[MetricName]) -> MetricName:
    if entry.metric is None:
        return names[0]
    metric, _, filter_name = entry.metric.partition(",")
    wanted = (metric.strip(), filter_name.strip() or "none")
    if wanted not in names:
        known = [",".join(name) for name in names]
        raise InputError(
            f"task {entry.task}: the suite's metric '{entry.metric}' is not among its metrics"
            f"{suggest(','.join(wanted), known)}; known: {', '.join(known)}"
        )
    return wanted


def _direction(runs: Mapping[str, LoadedRun], tasks: Sequence[str], metric: str, filter_name: str) -> bool:
    for loaded in runs.values():
        for task in tasks:
            found = _result(loaded, task, metric, filter_name)
            if found is not None:
                return found.higher_is_better
    raise InputError(
        f"task {tasks[0]}: no run's results say whether a higher {metric} ({filter_name}) is better; "
        "name it in the task's metric_list with higher_is_better"
    )


def _result(loaded: LoadedRun, task: str, metric: str, filter_name: str) -> TaskResult | None:
    wanted = (task, metric, filter_name)
    return next((r for r in loaded.run.results if (r.task, r.metric, r.filter) == wanted), None)


def _check_margins(margins: Mapping[str, float], tasks: Sequence[str]) -> None:
    for name, margin in margins.items():
        if name not in tasks:
            known = sorted(set(tasks))
            raise InputError(f"margin: no task '{name}'{suggest(name, known)}; tasks: {', '.join(known)}")
        if not 0 < margin < math.inf:
            raise InputError(
                f"margin of task {name}: expected a finite value above 0 in the metric's units, got {margin}"
            )
