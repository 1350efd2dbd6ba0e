"""The browser's items as text for the page: columns in JSON, deflated, in base64."""

from __future__ import annotations

import base64
import json
import math
import zlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from lora_eval.records import Comparison
from lora_eval.reports.items import Item, in_turn, primary_tasks
from lora_eval.stats.pairing import LIKELIHOOD_METRICS

PREFIX_CHARACTERS = 4_000
_BLOCK = 64  # neighbours that are packed together to estimate a size
_FEW = 2_000  # items that are packed whole without an estimate
_LEAST_PREFIX = 80  # a shorter common beginning is a template's, and reads better where it stands


@dataclass(frozen=True, slots=True)
class Limits:
    """Characters kept of a prompt and of any other text, for items with a change and for the others."""

    prompt: int
    text: int
    same_prompt: int
    same_text: int


def _limits(scale: float) -> Limits:
    """Items without a change are shortened twice as fast, down to what tells one from another."""
    twice = scale * scale
    return Limits(
        round(3_000 * scale),
        round(2_000 * scale),
        max(40, round(3_000 * twice)),
        max(24, round(2_000 * twice)),
    )


STEPS = tuple(_limits(0.86**step) for step in range(25))  # from what a person reads down to 80 characters


@dataclass(frozen=True, slots=True)
class Packed:
    """`data` is base64 of a zlib stream of JSON. Of `total` items `shown` are in it, of which `cut` have a
    text that was cut; `changed` of all items differ between two compared arms, `changed_shown` of them are
    in it.
    """

    data: str
    shown: int
    total: int
    changed: int
    changed_shown: int
    cut: int


def pack_items(comparison: Comparison, items: Sequence[Item], budget: int) -> Packed:
    """Return as many items and as much of their texts as fit into `budget` bytes of base64."""
    chosen, sample = list(items), _blocks(items)

    def size(step: int) -> int:
        return len(_pack(comparison, items, sample, STEPS[step]).data) * len(items) // max(1, len(sample))

    # Deflating 30 MB takes seconds: what is too large is known from a part of it.
    first = (
        bisect_left(range(len(STEPS) - 1), -budget, key=lambda step: -size(step)) if len(items) > _FEW else 0
    )
    for limits in STEPS[first:]:
        packed = _pack(comparison, items, chosen, limits)
        if len(packed.data) <= budget:
            return packed
    changed = [item for item in in_turn(items) if item.change > 0]
    order = [*changed, *(item for item in in_turn(items) if item.change == 0)]
    while chosen:
        # By the size of what was tried; a tenth less, since the first items are the longest.
        count = min(len(chosen) - 1, int(len(chosen) * budget / len(packed.data) * 0.9))
        chosen = sorted(islice(order, count), key=lambda item: item.key)
        packed = _pack(comparison, items, chosen, STEPS[-1])
        if len(packed.data) <= budget:
            break
    return packed


def _blocks(items: Sequence[Item]) -> list[Item]:
    """Evenly spaced blocks of neighbours, which deflate about as well as the whole; all items of a few."""
    blocks = len(items) // _BLOCK
    stride = max(1, blocks // 16)
    return [item for place, item in enumerate(items) if (place // _BLOCK) % stride == 0]


def _pack(comparison: Comparison, items: Sequence[Item], chosen: Sequence[Item], limits: Limits) -> Packed:
    columns, cut = _columns(comparison, chosen, limits)
    text = json.dumps(columns, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # A lone surrogate has no UTF-8: it is shown as a question mark.
    data = base64.b64encode(zlib.compress(text.encode("utf-8", "replace"), 9)).decode("ascii")
    changed = sum(item.change > 0 for item in items)
    return Packed(data, len(chosen), len(items), changed, sum(item.change > 0 for item in chosen), cut)


def _columns(comparison: Comparison, items: Sequence[Item], limits: Limits) -> tuple[dict[str, Any], int]:
    """What the page's script reads, and how many items have a text that was cut."""
    tasks = primary_tasks(comparison)
    arms = [arm.name for arm in comparison.arms]
    leaves = list(dict.fromkeys(item.leaf for item in items))
    prefixes = {leaf: _prefix([item.prompt for item in items if item.leaf == leaf]) for leaf in leaves}
    texts = _Cutter()
    rows = [_row(item, prefixes[item.leaf], limits, texts) for item in items]
    pairs = dict.fromkeys((pair.a, pair.b) for task in tasks for pair in task.pairs)
    data = {
        "arms": arms,
        "pairs": [[arms.index(a), arms.index(b)] for a, b in pairs],
        "tasks": [
            {
                "name": task.task,
                "metric": task.metric,
                "higher": task.higher_is_better,
                "likelihood": task.metric in LIKELIHOOD_METRICS,
            }
            for task in tasks
        ],
        "leaves": [{"name": leaf, "prefix": _head(prefixes[leaf], PREFIX_CHARACTERS)} for leaf in leaves],
        "task": [item.task for item in items],
        "leaf": [leaves.index(item.leaf) for item in items],
        "id": [item.number for item in items],
        "repeat": [item.repeat for item in items],
        "prompt": [row[0] for row in rows],
        "target": [row[1] for row in rows],
        "outputs": [row[2] for row in rows],
        "values": [[_number(answer.value) for answer in item.answers] for item in items],
        "choices": [row[3] for row in rows],
        "scores": [[_hundredths(answer.log_likelihoods) for answer in item.answers] for item in items],
        "reasons": [[answer.reason for answer in item.answers] for item in items],
    }
    return data, texts.items


class _Cutter:
    """Cuts texts, and counts the items of which one was cut."""

    def __init__(self) -> None:
        self.items = 0
        self._touched = False

    def head(self, text: str, limit: int) -> str:
        self._touched |= len(text) > limit
        return _head(text, limit)

    def tail(self, text: str, limit: int) -> str:
        self._touched |= len(text) > limit
        return _tail(text, limit)

    def close(self) -> None:
        self.items += self._touched
        self._touched = False


def _row(
    item: Item, prefix: str, limits: Limits, cutter: _Cutter
) -> tuple[str, str, list[str | int | None], list[str]]:
    """Prompt, target, outputs (an equal one named by its arm) and choices, cut to the limits."""
    changed = item.change > 0
    length = limits.text if changed else limits.same_text
    prompt = cutter.tail(item.prompt[len(prefix) :], limits.prompt if changed else limits.same_prompt)
    target = cutter.head(item.target, length)
    outputs, seen = list[str | int | None](), dict[str, int]()
    for place, answer in enumerate(item.answers):
        if answer.output is None or answer.output in seen:
            outputs.append(None if answer.output is None else seen[answer.output])
            continue
        seen[answer.output] = place
        outputs.append(cutter.head(answer.output, length))
    choices = [cutter.head(choice, length) for choice in item.choices]
    cutter.close()
    return prompt, target, outputs, choices


def _prefix(prompts: Sequence[str]) -> str:
    """The beginning that all prompts share, up to the end of a line; empty where it is short."""
    if len(prompts) < 2:
        return ""
    low, high = min(prompts), max(prompts)  # what these two share, all between them share
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    whole = low[: low.rfind("\n", 0, length) + 1]
    return whole if len(whole) >= _LEAST_PREFIX else ""


def _number(value: float | None) -> float | int | None:
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def _hundredths(values: Sequence[float]) -> list[int] | int:
    """Log-likelihoods of choices in hundredths of a nat; a single one is no choice: 0."""
    if len(values) < 2 or any(math.isnan(value) for value in values):
        return 0
    return [round(100 * min(max(value, -1e9), 1e9)) for value in values]


def _head(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]} [… {len(text) - limit:,} characters cut]"


def _tail(text: str, limit: int) -> str:
    """The end of a prompt holds the question; the shots before it are cut."""
    return text if len(text) <= limit else f"[{len(text) - limit:,} characters cut …] {text[-limit:]}"
