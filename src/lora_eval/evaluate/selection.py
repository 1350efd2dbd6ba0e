"""Some items of a suite: a few of every task, or as many as are asked for of all of them together."""

from __future__ import annotations

import random

from lora_eval.errors import InputError
from lora_eval.suites.combined import CombinedSuite
from lora_eval.suites.lm_eval import LmEvalSuite
from lora_eval.suites.loading import spaced

AnySuite = LmEvalSuite | CombinedSuite


def leaves_of(suite: AnySuite) -> dict[str, list[str]]:
    """Return the leaf tasks of every entry of the suite, in order."""
    names = [entry.task for entry in suite.record.entries()]
    return {name: suite.groups.get(name, [name]) for name in names}


def some_of_each(suite: AnySuite, count: int) -> dict[str, list[int]]:
    """Return about `count` items of each entry, evenly spaced, at least one of each of its tasks."""
    items = suite.items
    return {
        leaf: [items[leaf][place] for place in spaced(len(items[leaf]), -(-count // len(leaves)))]
        for leaves in leaves_of(suite).values()
        for leaf in leaves
    }


def drawn(suite: AnySuite, count: int, seed: int) -> dict[str, list[int]]:
    """Return `count` items (all, where there are fewer) drawn at random from those of all tasks together.

    Raises:
        InputError: count is below 1.
    """
    if count < 1:
        raise InputError(f"expected at least 1 item, got {count}")
    every = [(task, item) for task, items in suite.items.items() for item in items]
    chosen: dict[str, list[int]] = {}
    for task, item in sorted(random.Random(seed).sample(every, min(count, len(every)))):
        chosen.setdefault(task, []).append(item)
    return chosen
