"""Digests of files that are computed while others are merged."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from lora_eval.fingerprint import sha256_file

_THREADS = 2  # the file that is read, and the end of the one before it


class FileWork:
    """Threads that compute digests, which `sha256_file` then knows."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._begun: dict[Path, Future[str]] = {}

    def read(self, path: Path) -> None:
        """Begin the digest of a file that is about to be read, once: its pages are then in memory for all."""
        if path not in self._begun:
            self._begun[path] = self._pool.submit(sha256_file, path)

    def wait(self) -> None:
        """Return when all that was begun is done (OSError: a file could not be read)."""
        for found in self._begun.values():
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
