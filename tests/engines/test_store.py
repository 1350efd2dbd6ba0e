"""The file of stored answers: several processes, other users, other programs, and damage."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lora_eval.engines.store import ResultStore, default_store_path
from lora_eval.errors import OutputError, RecordError

KEY, OTHER = b"k" * 16, b"o" * 16


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ResultStore]:
    with ResultStore(tmp_path / "deep" / "results.sqlite") as opened:
        yield opened


_WRITE = """
import sys
from pathlib import Path
from lora_eval.engines.store import ResultStore
folder, first = Path(sys.argv[1]), int(sys.argv[2])
sys.stdin.readline()
for file in range(40):  # all processes make each file
    with ResultStore(folder / str(file)) as store:
        for start in range(first, first + 20, 2):
            rows = [(b"%016d" % i, b"%d" % i) for i in (start, start + 1)]
            store.insert(rows)
            assert store.lookup([key for key, _ in rows]) == dict(rows)
        assert store.writable
"""


def test_processes_make_and_write_a_file_at_the_same_time(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITE, str(folder), str(first)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for first in (0, 10, 10, 20)
    ]
    for writer in writers:
        assert writer.stdin
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    said = [writer.communicate(timeout=120)[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0, 0], said
    for file in range(40):
        with ResultStore(folder / str(file)) as store:
            keys = [b"%016d" % i for i in range(50)]
            assert store.lookup(keys) == {b"%016d" % i: b"%d" % i for i in range(40)}
    assert len(list(folder.iterdir())) == 40  # no log is left


def test_a_file_that_another_process_is_making(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, other.execute, ["COMMIT"])
    release.start()
    with ResultStore(path) as store:
        store.insert([(KEY, b"1")])
        assert store.lookup([KEY]) == {KEY: b"1"}
    release.join()
    other.close()


def test_a_step_is_stored_whole_or_not_at_all(store: ResultStore) -> None:
    def rows() -> Iterator[tuple[bytes, bytes]]:
        yield KEY, b"1"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.insert(rows())
    assert store.lookup([KEY]) == {}
    store.insert([(KEY, b"2")])
    with ResultStore(store.path) as another:
        assert another.lookup([KEY]) == {KEY: b"2"}


def test_the_first_answer_stays(store: ResultStore) -> None:
    store.insert([(KEY, b"1"), (OTHER, b"2")])
    store.insert([(KEY, b"3")])
    assert store.lookup([KEY, KEY, OTHER, b"?" * 16]) == {KEY: b"1", OTHER: b"2"}


# Files that are not as they should be


_AS_NOBODY = """
import os, sys
from pathlib import Path
from lora_eval.engines.store import ResultStore
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
with ResultStore(Path(sys.argv[1])) as store:
    store.insert([(b"o" * 16, b"new")])
    print(store.lookup([b"k" * 16, b"o" * 16]), store.writable, len(store.notes), flush=True)
    if sys.stdin.readline():
        print(store.lookup([b"k" * 16, b"o" * 16]))
"""


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder in which the process of `_AS_NOBODY` may read; `tmp_path` stands in folders of mode 0700."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        folder.chmod(0o755)


def _read_as_nobody(path: Path, standard_input: str = "") -> list[str]:
    path.chmod(0o444)
    path.parent.chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, str(path)], input=standard_input, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "can be read but not written" in done.stderr
    return done.stdout.splitlines()


ONLY_OURS = f"{ {KEY: b'1'} } False 1"


def test_somebody_elses_file_answers(shared_folder: Path) -> None:
    path = shared_folder / "results.sqlite"
    with ResultStore(path) as store:
        store.insert([(KEY, b"1")])
    assert _read_as_nobody(path) == [ONLY_OURS]
    assert [file.name for file in shared_folder.iterdir()] == [path.name]


def test_somebody_elses_file_that_is_in_use_answers(shared_folder: Path) -> None:
    path = shared_folder / "results.sqlite"
    with ResultStore(path) as store:
        store.insert([(KEY, b"1")])  # stands in the log only
        assert _read_as_nobody(path) == [ONLY_OURS]


def test_a_file_that_its_owner_opens_again_is_read_again(shared_folder: Path) -> None:
    path = shared_folder / "results.sqlite"
    with ResultStore(path) as store:
        store.insert([(KEY, b"1")])
    path.chmod(0o444)
    shared_folder.chmod(0o555)
    with subprocess.Popen(
        [sys.executable, "-c", _AS_NOBODY, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    ) as reader:  # fmt: skip
        assert reader.stdout
        assert reader.stdout.readline().strip() == ONLY_OURS
        path.chmod(0o644)
        shared_folder.chmod(0o755)
        with ResultStore(path) as store:
            store.insert([(OTHER, b"2")])
        shared_folder.chmod(0o555)
        assert reader.communicate("go\n", timeout=60)[0].strip() == str({KEY: b"1", OTHER: b"2"})
    assert reader.returncode == 0


def _text(path: Path) -> None:
    path.write_text("{}")


def _long_text(path: Path) -> None:
    path.write_text("x" * 10_000)


def _foreign(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()


def _newer(path: Path) -> None:
    ResultStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=9")
    connection.close()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_text, "not a file of stored answers"),
        (_long_text, "not a file of stored answers"),
        (_foreign, "a database of another program"),
        (_newer, "stored answers of version 9, and this lora-eval reads version 1"),
    ],
)
def test_a_file_that_is_no_store(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    path = tmp_path / "results.sqlite"
    make(path)
    before = path.read_bytes()
    with pytest.raises(RecordError, match=said) as caught:
        ResultStore(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "LORA_EVAL_STORE" in str(caught.value)
    assert path.read_bytes() == before


def test_a_place_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="its folder cannot be made"):
        ResultStore(tmp_path / "file" / "results.sqlite")
    with pytest.raises(OutputError, match="cannot be opened"):
        ResultStore(tmp_path)


def test_an_empty_file_is_a_new_store(tmp_path: Path) -> None:
    path = tmp_path / "with space#and?more"
    path.touch()
    with ResultStore(path) as store:
        store.insert([(KEY, b"1")])
    with ResultStore(path) as store:
        assert store.lookup([KEY]) == {KEY: b"1"}


def test_where_answers_are_stored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LORA_EVAL_STORE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert default_store_path() == tmp_path / ".cache" / "lora-eval" / "results.sqlite"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_store_path() == tmp_path / "xdg" / "lora-eval" / "results.sqlite"
    monkeypatch.setenv("LORA_EVAL_STORE", "~/mine.sqlite")
    assert default_store_path() == tmp_path / "mine.sqlite"
    with ResultStore() as store:
        assert store.path == tmp_path / "mine.sqlite"
