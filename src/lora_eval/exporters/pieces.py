"""A tensor in pieces of whole rows, worked on by several threads and written in their order.

A piece of 2^18 elements stays in a core's cache through all operations on it; one by one over a whole matrix
they would each read it from memory again. Memory is bounded by a few pieces, however large the tensor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

_ELEMENTS = 1 << 18
_AHEAD = 4  # pieces for each thread that may wait for the writer

T = TypeVar("T")


def row_ranges(rows: int, width: int, step: int = 1) -> list[tuple[int, int]]:
    """Return (first, end) of pieces of about 2^18 elements; each begins at a multiple of `step` rows."""
    height = max(_ELEMENTS // max(width, 1) // step, 1) * step
    return [(start, min(start + height, rows)) for start in range(0, rows, height)]


class Workers:
    """Threads that each compute alone (torch's own threads would wait for each other at every operation)."""

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


@contextmanager
def open_workers() -> Iterator[Workers]:
    """Open as many threads as torch would use (OMP_NUM_THREADS, else the cores)."""
    import torch

    count = torch.get_num_threads()
    # The setting reaches threads at their first operation; the caller's own thread keeps what it has.
    with ThreadPoolExecutor(count, "merge", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield Workers(pool, count)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    torch.set_num_threads(count)
