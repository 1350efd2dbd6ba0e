"""Items whose score differs between two arms: what the HTML report's browser shows.

The page must stay small, so the texts are cut and the items are capped; both are counted and said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_eval.records import Comparison, LoadedRun, SampleRow, TaskComparison
from lora_eval.stats.pairing import LIKELIHOOD_METRICS, Rows, index_rows, likelihood_weight, rows_of_tasks

BYTES = 3_000_000
PROMPT_CHARACTERS = 3_000
OUTPUT_CHARACTERS = 2_000


@dataclass(frozen=True, slots=True)
class ChangedItems:
    """The items shown, and how many there are. `data` is what the page's script reads."""

    shown: int
    total: int
    data: dict[str, Any]


def changed_items(comparison: Comparison, runs: Mapping[str, LoadedRun], budget: int = BYTES) -> ChangedItems:
    """Return the items whose score differs within a compared pair, largest change first, tasks in turn.

    `budget` caps their JSON text in bytes.
    """
    tasks = [task for task in comparison.tasks if task.primary]
    arms = [arm.name for arm in comparison.arms]
    indexed = [index_rows(runs[arm].rows, arm) if arm in runs else {} for arm in arms]
    groups = comparison.suite.get("groups", {})
    queues = []
    for number, task in enumerate(tasks):
        leaves = groups.get(task.task, (task.task,))
        rows = [rows_of_tasks(own, leaves, task.filter) for own in indexed]
        queues.append(_changed(number, task, arms, rows))
    total, shown, size = sum(map(len, queues)), list[dict[str, Any]](), 0
    for item in _in_turn(queues):
        size += len(json.dumps(item, ensure_ascii=False).encode()) + 1
        if size > budget:
            break
        shown.append(item)
    shown.sort(key=lambda item: (item["task"], -item["change"], item["id"]))
    pairs = [[arms.index(pair.a), arms.index(pair.b)] for pair in (tasks[0].pairs if tasks else ())]
    described = [
        {
            "name": task.task,
            "metric": task.metric,
            "higher": task.higher_is_better,
            "likelihood": task.metric in LIKELIHOOD_METRICS,
        }
        for task in tasks
    ]
    data = {"arms": arms, "pairs": pairs, "tasks": described, "items": shown}
    return ChangedItems(len(shown), total, data)


def item_value(row: SampleRow, metric: str) -> float | None:
    """The item's value as a reader expects it: for perplexities its own perplexity."""
    value = row.metrics.get(metric)
    if value is None or metric not in LIKELIHOOD_METRICS:
        return value
    each = -value / likelihood_weight(row, metric)
    if LIKELIHOOD_METRICS[metric] == "bits":
        return each / math.log(2.0)
    return math.exp(min(each, 700.0))


def _changed(
    number: int, task: TaskComparison, arms: Sequence[str], rows: Sequence[Rows]
) -> list[dict[str, Any]]:
    pairs = [(arms.index(pair.a), arms.index(pair.b)) for pair in task.pairs]
    items = [_item(number, task, [own.get(key) for own in rows], pairs) for key in sorted(set().union(*rows))]
    return sorted((item for item in items if item["change"] > 0), key=lambda item: -item["change"])


def _item(
    number: int, task: TaskComparison, rows: Sequence[SampleRow | None], pairs: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    values = [item_value(row, task.metric) if row else None for row in rows]
    changes = [
        abs(second - first)
        for a, b in pairs
        if (first := values[a]) is not None and (second := values[b]) is not None
    ]
    row = next(row for row in rows if row)
    return {
        "task": number,
        "name": row.task,
        "id": row.item_id,
        "repeat": row.repeat,
        "change": max(changes, default=0.0),
        "prompt": _tail(row.prompt, PROMPT_CHARACTERS),
        "target": _head(row.target, OUTPUT_CHARACTERS),
        "values": values,
        "outputs": [_head(row.output, OUTPUT_CHARACTERS) if row else None for row in rows],
        "reasons": [row.reason if row else None for row in rows],
    }


def _in_turn(queues: Sequence[list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for place in range(max(map(len, queues), default=0)):
        yield from (queue[place] for queue in queues if place < len(queue))


def _head(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]} [... {len(text) - limit:,} characters cut]"


def _tail(text: str, limit: int) -> str:
    """The end of a prompt holds the question; the shots before it are cut."""
    return text if len(text) <= limit else f"[{len(text) - limit:,} characters cut ...] {text[-limit:]}"
