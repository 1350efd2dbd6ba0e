"""Which prompts are answered together: those that begin with the same tokens. No torch, no model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from lora_eval.sequences import as_bytes, common_length

_LEAST_PREFIX = 16  # tokens; a shorter one is not worth a product of its own in every step
_LEAST_GROUP = 4  # rows


def share_prefix(sequences: Sequence[Sequence[int]]) -> list[tuple[list[int], int]]:
    """Return groups of sequences (as their numbers) with the length of what each group begins with alike,
    less than its shortest member; 0 where that is too short to matter.
    """
    texts = [as_bytes(sequence) for sequence in sequences]
    order = sorted(range(len(texts)), key=texts.__getitem__)
    alike = [0, *(common_length(texts[a], texts[b]) for a, b in pairwise(order))]
    groups = []
    for first, last in _split(alike, 0, len(order)):
        members = order[first:last]
        shortest = min(len(texts[number]) // 4 for number in members)
        shared = min([shortest - 1, *alike[first + 1 : last]])
        groups.append((members, shared if shared >= _LEAST_PREFIX and len(members) > 1 else 0))
    return groups


def _split(alike: Sequence[int], first: int, last: int) -> list[tuple[int, int]]:
    """Cut sorted sequences where their parts share much more than the whole does."""
    found: list[tuple[int, int]] = []
    waiting = [(first, last)]
    while waiting:
        first, last = waiting.pop()
        inner = alike[first + 1 : last]
        whole = min(inner, default=0)
        cuts = [first, *(p for p in range(first + 1, last) if alike[p] == whole), last]
        parts = _joined(list(pairwise(cuts))) if inner else [(first, last)]
        gain = sum((b - a) * min(alike[a + 1 : b], default=0) for a, b in parts)
        if len(parts) > 1 and gain > 1.5 * whole * (last - first):
            waiting += reversed(parts)
        else:
            found.append((first, last))
    return found


def _joined(parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Put neighbours that are too small to stand alone together."""
    kept: list[tuple[int, int]] = []
    for a, b in parts:
        if kept and b - a < _LEAST_GROUP and kept[-1][1] - kept[-1][0] < _LEAST_GROUP:
            kept[-1] = (kept[-1][0], b)
        else:
            kept.append((a, b))
    return kept
