"""Before any figure counts: the base against itself must be exactly zero."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from lora_eval.errors import ControlFailed
from lora_eval.evaluate.selection import AnySuite, some_of_each
from lora_eval.models import IDENTITY
from lora_eval.protocols import Engine, Progress
from lora_eval.records import SampleRow

CONTROL_ITEMS = 8
_HOW = {"determinism": "scored again", "identity": "through an adapter that does nothing"}


def check_controls(
    engine: Engine, suite: AnySuite, base: str, progress: Progress, *, identity: bool = True
) -> dict[str, Any]:
    """Score some items of every task on the base twice, and once through an adapter that does nothing (unless
    `identity` is False: the engine then has no adapters to switch off).

    Raises:
        ControlFailed: a number or answer differs; names task, item and both values.
    """
    started = time.perf_counter()
    items = some_of_each(suite, CONTROL_ITEMS)

    def answers(arm: str, what: str) -> list[SampleRow]:
        return suite.run(engine, arm, _labelled(progress, what), items=items).rows

    first = answers(base, "control")
    checks = {"determinism": answers(base, "control, again")}
    if identity:
        checks["identity"] = answers(IDENTITY, "control, zero adapter")
    for name, rows in checks.items():
        pairs = [(a, b) for a, b in zip(first, rows, strict=True) if a != b]
        if pairs:
            count = _items(a for a, _ in pairs)
            raise ControlFailed(
                f"control '{name}': the base {_HOW[name]} differs from itself on {count} of {_items(rows)} "
                f"items, first {_difference(*pairs[0])}; differences between arms would not be the adapter's"
            )
    tasks = len({row.task for row in first})
    passed = {"tasks": tasks, "items": _items(first), "differences": 0, "passed": True}
    return {name: dict(passed) for name in sorted(checks, reverse=True)} | {
        "seconds": round(time.perf_counter() - started, 3)
    }


def _labelled(progress: Progress, what: str) -> Progress:
    return lambda _, done, total: progress(what, done, total)


def _items(rows: Iterable[SampleRow]) -> int:
    """How many items the rows are of: an item has a row for each filter."""
    return len({(row.task, row.item_id) for row in rows})


def _difference(a: SampleRow, b: SampleRow) -> str:
    place = f"task {a.task}, item {a.item_id}"
    if a.log_likelihoods != b.log_likelihoods:
        return f"{place}: log-likelihoods {a.log_likelihoods} and {b.log_likelihoods}"
    if a.output != b.output:
        return f"{place}: answers {a.output!r} and {b.output!r}"
    return f"{place}: figures {a.metrics} and {b.metrics}"
