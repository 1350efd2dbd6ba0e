"""Finished calls on disk: one JSON line each, written and fsynced before the call counts as done.

A torn last line (the process was killed) is cut off when the file is opened again. One process at a time.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from pathlib import Path
from types import TracebackType

from lora_eval.errors import InputError, OutputError, RecordError
from lora_eval.records import JudgeVerdict
from lora_eval.schema import parse_record

FILE = "verdicts.jsonl"


class VerdictStore:
    """The verdicts of one folder, locked while it is open. `verdicts` are those on disk, by key."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.verdicts: dict[str, JudgeVerdict] = {}
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def __enter__(self) -> VerdictStore:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise InputError(f"{self.path}: another process is judging into this folder") from None
        whole = cut_torn_line(self._file)
        self.verdicts = {verdict.key: verdict for verdict in parse_verdicts(whole, self.path)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    async def add(self, verdict: JudgeVerdict) -> None:
        """Return when the verdict is on the disk. Verdicts that wait for one another share an fsync.

        Raises:
            OutputError: the disk is full or cannot be written.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line = json.dumps(verdict.model_dump(mode="json", by_alias=True), ensure_ascii=False) + "\n"
        self._waiting.append((line.encode("utf-8", "backslashreplace"), done))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        # Shielded: a call that was paid for reaches the disk though the run is being stopped.
        await asyncio.shield(done)
        self.verdicts[verdict.key] = verdict

    async def drain(self) -> None:
        """Return when nothing waits to be written."""
        while self._writing is not None and not self._writing.done():
            await asyncio.wait([self._writing])

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            content = b"".join(line for line, _ in batch)
            try:
                await asyncio.to_thread(_append, self._file, content)
            except OSError as error:
                fault = OutputError(f"{self.path}: cannot be written: {error.strerror or error}")
                for _, done in batch:
                    if not done.done():
                        done.set_exception(fault)
            else:
                for _, done in batch:
                    if not done.done():
                        done.set_result(None)


def read_verdicts(path: Path) -> list[JudgeVerdict]:
    """Return the verdicts of a file, or of the folder that `judge run` wrote.

    Raises:
        RecordError: with every line that is no verdict.
    """
    path = path / FILE if path.is_dir() else path
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecordError(str(path), [f"cannot be read: {error.strerror or error}"]) from error
    return parse_verdicts(content[: content.rfind(b"\n") + 1], path)


def parse_verdicts(content: bytes, path: Path) -> list[JudgeVerdict]:
    """Return the verdict of each line.

    Raises:
        RecordError: with every line that is none, and its number.
    """
    verdicts, problems = [], []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            verdicts.append(parse_record(json.loads(line), JudgeVerdict, f"line {number}"))
        except RecordError as error:
            problems += [f"line {number}: {problem}" for problem in error.problems]
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number}: is not valid JSON: {error}")
    if problems:
        raise RecordError(str(path), problems)
    return verdicts


def cut_torn_line(file: int) -> bytes:
    """Return the whole lines of an open file, and take what stands after the last of them away."""
    size = os.fstat(file).st_size
    content = b""
    while len(content) < size:
        content += os.pread(file, size - len(content), len(content))
    whole = content.rfind(b"\n") + 1
    if whole < size:
        os.ftruncate(file, whole)
        os.fsync(file)
    return content[:whole]


def _append(file: int, content: bytes) -> None:
    written = 0
    while written < len(content):
        written += os.write(file, content[written:])
    os.fsync(file)
