"""A file of known size that is written past the page cache, its digest computed from the same memory.

Through the page cache each byte is copied, often to memory whose first touch costs as much again: 6.7 GB took
11 to 16 s of a core; written directly 0.3 s (ext4, virtual disk, Linux 6). A file system that refuses direct
writes gets the same windows through its cache.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_eval.fingerprint import remember_digest

WINDOW = 8 << 20  # bytes that are written at once
_BLOCK = 4096  # memory, places and lengths of direct writes are multiples of it
_WAITING = 4  # full windows on their way to the disk


@dataclass(slots=True)
class _Window:
    """A stretch of the file in memory; `missing` bytes of it are still to come."""

    memory: Any
    missing: int


class DirectFile:
    """Takes bytes in any order and from several threads, each byte once. Memory is bounded by a few windows
    where they come roughly in order.
    """

    def __init__(
        self, descriptor: int, size: int, hashing: ThreadPoolExecutor, disk: ThreadPoolExecutor
    ) -> None:
        self._descriptor, self._size, self._hashing, self._disk = descriptor, size, hashing, disk
        self._digest = hashlib.sha256()
        self._direct = _set_direct(descriptor, on=True)
        self._open: dict[int, _Window] = {}
        self._next = 0  # the first window that is not on its way
        self._free: list[Any] = []
        self._room = threading.Semaphore(_WAITING)
        self._begun: deque[Future[None]] = deque()
        self._lock = threading.Lock()

    def put(self, place: int, data: Any) -> None:
        """Take a flat uint8 tensor for the file's bytes from `place` on; it may lie in scratch memory.

        Raises:
            OSError: what was taken before cannot be written.
        """
        while len(data):
            number, first = divmod(place, WINDOW)
            piece = data[: WINDOW - first]
            self._window(number).memory[first : first + len(piece)].copy_(piece)
            self._filled(number, len(piece))
            place, data = place + len(piece), data[len(piece) :]

    def finish(self) -> str:
        """Return the hexadecimal sha256 when all is on the disk (OSError where it cannot be)."""
        while self._begun:
            self._begun.popleft().result()
        os.ftruncate(self._descriptor, self._size)  # direct writes are whole blocks
        os.fsync(self._descriptor)
        return self._digest.hexdigest()

    def _window(self, number: int) -> _Window:
        with self._lock:
            if number not in self._open:
                memory = self._free.pop() if self._free else _aligned_memory()
                self._open[number] = _Window(memory, min(WINDOW, self._size - number * WINDOW))
            return self._open[number]

    def _filled(self, number: int, count: int) -> None:
        """Send what is whole on its way, in the file's order, which the digest needs."""
        with self._lock:
            self._open[number].missing -= count
            while self._next in self._open and not self._open[self._next].missing:
                while self._begun and self._begun[0].done():
                    self._begun.popleft().result()
                self._room.acquire()
                start, memory = self._next * WINDOW, self._open.pop(self._next).memory
                data = memoryview(memory.numpy())[: self._size - start]
                hashed = self._hashing.submit(self._digest.update, data)
                self._begun.append(self._disk.submit(self._write, start, memory, hashed))
                self._next += 1

    def _write(self, start: int, memory: Any, hashed: Future[None]) -> None:
        try:
            data = memoryview(memory.numpy())[: self._size - start]
            if self._direct:
                blocks = memoryview(memory.numpy())[: -(-len(data) // _BLOCK) * _BLOCK]
                self._direct = self._wrote_directly(start, blocks)
            if not self._direct:
                _write_all(self._descriptor, start, data)
            hashed.result()
        finally:
            self._free.append(memory)
            self._room.release()

    def _wrote_directly(self, start: int, blocks: memoryview) -> bool:
        try:
            _write_all(self._descriptor, start, blocks)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # This file system wants larger blocks than ours.
            _set_direct(self._descriptor, on=False)
            return False
        return True


@contextmanager
def open_direct(path: Path, size: int) -> Iterator[DirectFile]:
    """Make a file of `size` bytes, all of which are to be put; `sha256_file` then knows its digest.

    It is on the disk at the end: what an export leaves is whole after a power cut, too.
    """
    with (
        path.open("xb", buffering=0) as file,
        ThreadPoolExecutor(1, "digest") as hashing,
        ThreadPoolExecutor(1, "disk") as disk,
    ):
        direct = DirectFile(file.fileno(), size, hashing, disk)
        yield direct
        remember_digest(path, direct.finish())


def _write_all(descriptor: int, start: int, data: memoryview) -> None:
    while data:
        written = os.pwrite(descriptor, data, start)
        start, data = start + written, data[written:]


def _set_direct(descriptor: int, *, on: bool) -> bool:
    """Switch direct writes on or off; returns whether they are on."""
    try:
        import fcntl

        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        flags = flags | os.O_DIRECT if on else flags & ~os.O_DIRECT
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    except (ImportError, AttributeError, OSError):  # no Unix, no Linux, a file system without it
        return False
    return on


def _aligned_memory() -> Any:
    import torch

    memory = torch.empty(WINDOW + _BLOCK, dtype=torch.uint8)
    return memory[-memory.data_ptr() % _BLOCK :][:WINDOW]
