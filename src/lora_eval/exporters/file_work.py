"""What is done with files while others are merged: their digests, and their way to the disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_eval.fingerprint import FileDigest, sha256_file

_THREADS = 3  # a file that is read, one that grows on the disk, and one that is whole


class FileWork:
    """Threads that compute digests (`sha256_file` then knows them) and put written files on the disk."""

    def __init__(self, pool: ThreadPoolExecutor, follower: ThreadPoolExecutor) -> None:
        self._pool, self._follower = pool, follower
        self._begun: list[Future[Any]] = []
        self._read: set[Path] = set()
        self._syncing: Future[Any] | None = None

    def read(self, path: Path) -> None:
        """Begin the digest of a file that is about to be read, once: its pages are then in memory for all."""
        if path not in self._read:
            self._read.add(path)
            self._begun.append(self._pool.submit(sha256_file, path))

    @contextmanager
    def writing(self, path: Path) -> Iterator[Callable[[int], None]]:
        """Within this a file is written; gives what is to be told how many of its bytes are complete.

        Its digest follows. When the file is whole it begins its way to the disk: what an export leaves is
        whole after a power cut, too.
        """
        digest = FileDigest(path)

        def reached(end: int) -> None:
            self._begun.append(self._follower.submit(digest.advance, end))
            if self._syncing is None or self._syncing.done():  # else the disk begins when memory is full
                self._syncing = self._pool.submit(_to_disk, path)
                self._begun.append(self._syncing)

        yield reached
        self._begun += [self._pool.submit(_to_disk, path), self._follower.submit(digest.finish)]

    def wait(self) -> None:
        """Return when all that was begun is done (OSError: a file could not be read or written)."""
        for found in self._begun:
            found.result()


@contextmanager
def file_work() -> Iterator[FileWork]:
    """Open the threads; a fault of the caller's does not wait for what they have begun."""
    pool, follower = ThreadPoolExecutor(_THREADS, "files"), ThreadPoolExecutor(1, "digest")
    try:
        work = FileWork(pool, follower)
        yield work
        work.wait()
    finally:
        for threads in (pool, follower):
            threads.shutdown(wait=False, cancel_futures=True)


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
