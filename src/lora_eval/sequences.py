"""Token sequences as bytes: compact keys that compare at the speed of memory; and what answering takes."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

TOKEN_BYTES = 4  # of a token id


def as_bytes(sequence: Sequence[int]) -> bytes:
    """Return token ids as bytes, four for each: a compact key."""
    return array("i", sequence).tobytes()


def common_length(a: bytes, b: bytes) -> int:
    """Return how many tokens two sequences (as `as_bytes` gives them) begin with alike."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # by halving, because comparing slices is one call into C
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low // TOKEN_BYTES


def count_work(inputs: Iterable[Sequence[int]], new_tokens: Iterable[int]) -> Counter[str]:
    """Return `requests`, `requested_tokens` and `distinct_tokens` (see `records.Work`) of the inputs of all
    requests and their numbers of new tokens. Distinct are the nodes of the inputs' token tree.
    """
    texts = [as_bytes(ids) for ids in inputs]
    new = sum(new_tokens)
    ordered = [b"", *sorted(set(texts))]
    distinct = sum(len(b) // TOKEN_BYTES - common_length(a, b) for a, b in pairwise(ordered))
    asked = sum(len(text) for text in texts) // TOKEN_BYTES
    return Counter(requests=len(texts), requested_tokens=asked + new, distinct_tokens=distinct + new)
