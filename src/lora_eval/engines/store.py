"""A file of answers: what one run has computed, every later run of anybody can read.

SQLite in WAL mode, one table from a 16-byte key to a blob. A commit follows every call of `insert`, so a
process that is killed loses at most the answers it had not handed over. What a key and a blob mean is said in
`engines.stored`.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from lora_eval.errors import InputError, OutputError, RecordError

_SCHEMA = 1
_APPLICATION = 0x4C455641  # "LEVA" in the file's header: how a store of ours is told from another database
_KEYS_AT_ONCE = 512  # of one SELECT; more was not faster
_BUSY_SECONDS = 30.0
_TABLE = "CREATE TABLE answers (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
_ELSEWHERE = "move it away or set $LORA_EVAL_STORE to another path; answers are then computed again"


def default_store_path() -> Path:
    """Return $LORA_EVAL_STORE, else `lora-eval/results.sqlite` in $XDG_CACHE_HOME or ~/.cache.

    Raises:
        OutputError: none of them is set, and this user has no home folder.
    """
    try:
        if chosen := os.environ.get("LORA_EVAL_STORE"):
            return Path(chosen).expanduser()
        cache = os.environ.get("XDG_CACHE_HOME")
        return (Path(cache) if cache else Path.home() / ".cache") / "lora-eval" / "results.sqlite"
    except RuntimeError as error:
        raise OutputError(f"no place for stored answers: {error} Set $LORA_EVAL_STORE to a file") from error


class ResultStore:
    """Answers by key, in one file that several processes may read and write at once.

    A file that cannot be written still answers. `writable` says whether new answers are kept, and `notes`
    what a report must say about it; each note is logged once.

    Raises:
        RecordError: the file is damaged, of another program, or of another version of this one.
        OutputError: it cannot be made or opened.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = default_store_path() if path is None else path
        self.notes: tuple[str, ...] = ()
        self.writable = not self.path.is_file() or (
            os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK)
        )
        self._frozen: tuple[int, ...] | None = None  # state of a file that is read without any lock
        if self.writable:
            self._connection = self._open_writable()
        else:
            self._connection = self._open_read_only()
            self._note(f"{self.path}: stored answers can be read but not written; new ones are not kept")

    def lookup(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return what is stored for those of the keys that are there.

        Raises:
            RecordError: the file is damaged.
        """
        found: dict[bytes, bytes] = {}
        remaining = iter(keys)
        while chunk := tuple(islice(remaining, _KEYS_AT_ONCE)):
            found.update(self._select(chunk))
        return found

    def insert(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Store pairs of key and value and commit them; a key that is there keeps its value.

        Where that fails (a full disk), it is noted once and nothing more is stored: an evaluation does not
        end for it.
        """
        if not self.writable:
            return
        try:
            with self._connection as transaction:
                transaction.execute("BEGIN IMMEDIATE")
                transaction.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            self.writable = False
            self._note(f"{self.path}: cannot be written ({error}); answers from here on are not kept")

    def close(self) -> None:
        """Close the file; the last to close it leaves one file without its `-wal` and `-shm`."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _select(self, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        query = f"SELECT key, value FROM answers WHERE key IN ({','.join('?' * len(keys))})"
        rows = None
        try:
            rows = self._connection.execute(query, keys).fetchall()
        except sqlite3.Error as error:
            if not self._has_changed():
                raise self._fault(error) from error
        if rows is None or self._has_changed():  # its owner writes again: what was read may be torn
            self.close()
            self._connection = self._open_read_only()
            return self._select(keys)
        return rows

    def _open_writable(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(f"{self.path}: its folder cannot be made: {reason}; {_ELSEWHERE}") from error
        connection = self._connect("mode=rwc")
        try:
            if self._is_empty(connection):
                _retry_while_busy(connection, "PRAGMA journal_mode=WAL")
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    if self._is_empty(connection):  # no other process was faster
                        connection.execute(_TABLE)
                        connection.execute(f"PRAGMA application_id={_APPLICATION}")
                        connection.execute(f"PRAGMA user_version={_SCHEMA}")
            # No fsync for a commit: a killed process loses nothing, a power cut the last commits.
            connection.execute("PRAGMA synchronous=NORMAL")
        except sqlite3.Error as error:
            connection.close()
            raise self._fault(error) from error
        except RecordError:
            connection.close()
            raise
        return connection

    def _open_read_only(self) -> sqlite3.Connection:
        """Open a file that is somebody else's: with locks if it is in use, else as one that never changes."""
        fault: InputError | None = None
        for options in ("mode=ro", "mode=ro&immutable=1"):
            self._frozen = self._state() if "immutable" in options else None
            if self._frozen is not None and self._frozen[-1]:
                break  # without its log the file may be half a checkpoint
            connection = self._connect(options)
            try:
                if not self._is_empty(connection):
                    return connection
                fault = RecordError(str(self.path), [f"an empty file that cannot be written; {_ELSEWHERE}"])
            except sqlite3.Error as error:
                fault = self._fault(error)  # SQLite cannot make the files that hold its locks
            except RecordError as error:
                fault = error
            connection.close()
            if isinstance(fault, RecordError):
                break
        assert fault is not None
        raise fault

    def _connect(self, options: str) -> sqlite3.Connection:
        location = f"{self.path.absolute().as_uri()}?{options}"
        try:
            return sqlite3.connect(location, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
        except sqlite3.Error as error:
            raise self._fault(error) from error

    def _is_empty(self, connection: sqlite3.Connection) -> bool:
        """Return whether the file holds nothing yet; raise RecordError if it is no store of this version."""
        connection.execute("SAVEPOINT look")  # one snapshot: another process may be making the file
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.execute("RELEASE look")
        if (application, version, tables) == (0, 0, 0):
            return True
        if application != _APPLICATION:
            problem = "a database of another program, not stored answers"
        elif version != _SCHEMA:
            problem = f"stored answers of version {version}, and this lora-eval reads version {_SCHEMA}"
        else:
            return False
        raise RecordError(str(self.path), [f"{problem}; {_ELSEWHERE}"])

    def _has_changed(self) -> bool:
        return self._frozen is not None and self._frozen != self._state()

    def _state(self) -> tuple[int, ...]:
        """Size and time of the file, and the size of its write-ahead log."""
        log = self.path.with_name(f"{self.path.name}-wal")
        if not self.path.exists():
            return 0, 0, 0
        stat = self.path.stat()
        return stat.st_size, stat.st_mtime_ns, log.stat().st_size if log.exists() else 0

    def _fault(self, error: sqlite3.Error) -> InputError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_NOTADB:
            return RecordError(str(self.path), [f"not a file of stored answers; {_ELSEWHERE}"])
        if code == sqlite3.SQLITE_CORRUPT:
            return RecordError(str(self.path), [f"damaged ({error}); {_ELSEWHERE}"])
        return OutputError(f"{self.path}: stored answers cannot be opened: {error}; {_ELSEWHERE}")

    def _note(self, text: str) -> None:
        self.notes = (*self.notes, text)
        logging.getLogger(__name__).warning(text)


def _retry_while_busy(connection: sqlite3.Connection, statement: str) -> None:
    """SQLite does not wait by itself where two processes change the journal mode of a new file at once."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute(statement)
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
