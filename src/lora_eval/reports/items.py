"""Every item of a comparison for the HTML report's browser, packed to a size in bytes.

The page must stay small: columns instead of rows, a beginning that a task's prompts share stored once, an
output equal to another arm's named and not repeated, all of it deflated. What is still too large is cut in
this order: texts of items without a change, texts of changed items, items without a change, changed items
with the smallest change. What was cut or left out is counted and said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lora_eval.records import Comparison, LoadedRun, SampleRow, TaskComparison
from lora_eval.stats.pairing import LIKELIHOOD_METRICS, index_rows, likelihood_weight, rows_of_tasks


@dataclass(frozen=True, slots=True)
class ArmAnswer:
    """What one arm gave for one item: the score as a reader expects it, and its text."""

    value: float | None
    output: str | None
    log_likelihoods: tuple[float, ...]
    reason: str | None


@dataclass(frozen=True, slots=True)
class Item:
    """One item under one task's main metric, with an answer for every arm (in the order of the arms)."""

    task: int
    leaf: str
    number: int
    repeat: int
    prompt: str
    target: str
    choices: tuple[str, ...]
    answers: tuple[ArmAnswer, ...]
    change: float

    @property
    def key(self) -> tuple[int, str, int, int]:
        """The order of the data."""
        return (self.task, self.leaf, self.number, self.repeat)


def list_items(comparison: Comparison, runs: Mapping[str, LoadedRun]) -> list[Item]:
    """Return the items of every task that carries a verdict, in the order of tasks and data."""
    names = [arm.name for arm in comparison.arms]
    arms = [index_rows(runs[name].rows, name) if name in runs else {} for name in names]
    groups = comparison.suite.get("groups", {})
    items = list[Item]()
    for place, task in enumerate(primary_tasks(comparison)):
        leaves = groups.get(task.task, (task.task,))
        rows = [rows_of_tasks(arm, leaves, task.filter) for arm in arms]
        pairs = [(names.index(pair.a), names.index(pair.b)) for pair in task.pairs]
        keys = {key for arm in rows for key in arm}
        items += [_item(place, task, [arm.get(key) for arm in rows], pairs) for key in keys]
    return sorted(items, key=lambda item: item.key)


def primary_tasks(comparison: Comparison) -> list[TaskComparison]:
    """The tasks whose metric carries a verdict: those that the browser shows."""
    return [task for task in comparison.tasks if task.primary]


def in_turn(items: Sequence[Item]) -> Iterator[Item]:
    """The items with the largest change first, tasks in turn, so that a cap leaves each task its share."""
    queues: dict[int, list[Item]] = {}
    for item in sorted(items, key=lambda item: (-item.change, item.key)):
        queues.setdefault(item.task, []).append(item)
    for place in range(max(map(len, queues.values()), default=0)):
        yield from (queue[place] for queue in queues.values() if place < len(queue))


def item_value(row: SampleRow, metric: str) -> float | None:
    """The item's value as a reader expects it: for perplexities its own perplexity."""
    value = row.metrics.get(metric)
    if value is None or metric not in LIKELIHOOD_METRICS:
        return value
    each = -value / likelihood_weight(row, metric)
    if LIKELIHOOD_METRICS[metric] == "bits":
        return each / math.log(2.0)
    return math.exp(min(each, 700.0))


def _item(
    place: int, task: TaskComparison, rows: Sequence[SampleRow | None], pairs: Sequence[tuple[int, int]]
) -> Item:
    answers = tuple(_answer(row, task.metric) for row in rows)
    changes = [
        abs(second - first)
        for a, b in pairs
        if (first := answers[a].value) is not None and (second := answers[b].value) is not None
    ]
    row = next(row for row in rows if row)
    return Item(
        task=place,
        leaf=row.task,
        number=row.item_id,
        repeat=row.repeat,
        prompt=row.prompt,
        target=row.target,
        choices=row.choices,
        answers=answers,
        change=max(changes, default=0.0),
    )


def _answer(row: SampleRow | None, metric: str) -> ArmAnswer:
    if row is None:
        return ArmAnswer(None, None, (), "not answered")
    return ArmAnswer(item_value(row, metric), row.output, row.log_likelihoods, row.reason)
