"""What is done with whole files while others are merged: their digests, and their way to the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_eval.fingerprint import sha256_file

_THREADS = 3  # a file that is read, one that was written, and one on its way to the disk


class FileWork:
    """Threads that compute digests (`sha256_file` then knows them) and put written files on the disk."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._begun: list[Future[Any]] = []
        self._read: set[Path] = set()

    def read(self, path: Path) -> None:
        """Begin the digest of a file that is about to be read, once: its pages are then in memory for all."""
        if path not in self._read:
            self._read.add(path)
            self._begun.append(self._pool.submit(sha256_file, path))

    def written(self, path: Path) -> None:
        """Begin the digest of a file that is complete, and its way to the disk: what an export leaves is
        whole after a power cut, too.
        """
        self._begun += [self._pool.submit(_to_disk, path), self._pool.submit(sha256_file, path)]

    def wait(self) -> None:
        """Return when all that was begun is done (OSError: a file could not be read or written)."""
        for found in self._begun:
            found.result()


@contextmanager
def file_work() -> Iterator[FileWork]:
    """Open the threads; a fault of the caller's does not wait for what they have begun."""
    pool = ThreadPoolExecutor(_THREADS, "files")
    try:
        work = FileWork(pool)
        yield work
        work.wait()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
