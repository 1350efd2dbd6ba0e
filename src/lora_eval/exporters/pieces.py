"""A tensor in pieces of whole rows, worked on by several threads.

A piece of 2^18 elements stays in a core's cache through all operations on it; one by one over a whole matrix
they would each read it from memory again. Memory is bounded by a few pieces, however large the tensor.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from typing import Any, TypeVar

_ELEMENTS = 1 << 18
_TILE = 16
_AHEAD = 4  # pieces for each thread that may wait for their turn

T = TypeVar("T")
InOrder = Callable[[Callable[[int, int], Any], list[tuple[int, int]]], Iterable[Any]]
"""Gives `work(first, end)` of each range in order."""


def row_ranges(rows: int, width: int, step: int = 1) -> list[tuple[int, int]]:
    """Return (first, end) of pieces of about 2^18 elements; each begins at a multiple of `step` (a power of
    two) and of 16 rows, and the last is never the smallest.

    A matrix product in such pieces equals the whole product in every bit: MKL takes other kernels, which sum
    in another order, for the last rows where they are few (seen with 1, 2 and 3), and 16 divides its tiles.
    """
    step = max(step, _TILE)
    height = max(_ELEMENTS // max(width, 1) // step, 1) * step
    starts = list(range(0, max(rows - height + 1, min(rows, 1)), height))
    return [(start, end) for start, end in zip(starts, [*starts[1:], rows], strict=False) if rows]


class _Kept(threading.local):
    """Memory of one thread by its name."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}


_KEPT = _Kept()


def scratch(name: str, shape: tuple[int, ...], dtype: Any = None) -> Any:
    """Return memory of this thread (float32 unless said) that the next call with this name uses again.

    Taking new pages from the system for every piece and giving them back cost as much as the arithmetic.
    """
    import torch

    size, dtype = prod(shape), dtype or torch.float32
    kept = _KEPT.found.get(name)
    if kept is None or len(kept) < size:
        _KEPT.found[name] = kept = torch.empty(size, dtype=dtype)
    return kept[:size].view(shape)


def one_by_one(work: Callable[[int, int], Any], ranges: list[tuple[int, int]]) -> Iterator[Any]:
    """Yield `work(first, end)` of each range, in the caller's own thread."""
    return (work(first, end) for first, end in ranges)


class Workers:
    """Threads that each compute alone. Torch's own threads wait for each other at every operation, spinning:
    on a busy machine the same work took three times the processor time.
    """

    def __init__(self, pool: ThreadPoolExecutor, count: int) -> None:
        self._pool, self._count = pool, count

    def ordered(self, work: Callable[[int, int], T], ranges: list[tuple[int, int]]) -> Iterator[T]:
        """Yield `work(first, end)` of each range in order, a bounded number ahead."""
        waiting: deque[Future[T]] = deque()
        for first, end in ranges:
            waiting.append(self._pool.submit(work, first, end))
            if len(waiting) > self._count * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def all(self, work: Callable[[int, int], Any], ranges: list[tuple[int, int]]) -> None:
        """Do `work(first, end)` of each range; returns when all are done."""
        for _ in self.ordered(work, ranges):
            pass


@contextmanager
def open_workers() -> Iterator[Workers]:
    """Open as many threads as torch would use (OMP_NUM_THREADS, else the cores)."""
    import torch

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    with ThreadPoolExecutor(count, "merge", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield Workers(pool, count)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(count)
