"""Digests are known when the work is over; a fault does not wait for them, and is heard."""

from __future__ import annotations

import hashlib
import os

import pytest

from lora_eval import fingerprint
from lora_eval.exporters.file_work import file_work
from lora_eval.fingerprint import sha256_file


def test_digests_are_those_of_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "WINDOW", 4096)
    read, written = tmp_path / "read", tmp_path / "written"
    read.write_bytes(b"base" * 5000)
    with file_work() as files:
        files.read(read)
        files.read(read)
        with files.writing(written) as reached, written.open("wb", buffering=0) as file:
            for part in range(10):
                file.write(b"result" * 500)
                reached(3000 * (part + 1) - 500)
    written = written.rename(tmp_path / "at its place")
    monkeypatch.setattr(type(read), "open", None)  # nothing is read again
    digests = [sha256_file(path) for path in (read, written)]
    assert digests == [hashlib.sha256(data * 5000).hexdigest() for data in (b"base", b"result")]


def test_a_file_that_was_changed_is_read_again(tmp_path):
    path = tmp_path / "weights"
    with file_work() as files, files.writing(path):
        path.write_bytes(b"a" * 100)
    path.write_bytes(b"b" * 100)
    assert sha256_file(path) == hashlib.sha256(b"b" * 100).hexdigest()


def test_a_file_that_was_not_finished_is_not_known(tmp_path):
    path = tmp_path / "weights"
    with pytest.raises(ValueError, match="ours"), file_work() as files, files.writing(path) as reached:
        path.write_bytes(b"a" * 100)
        reached(100)
        raise ValueError("ours")
    state = path.stat()
    path.write_bytes(b"b" * 100)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert sha256_file(path) == hashlib.sha256(b"b" * 100).hexdigest()


def test_a_file_that_cannot_be_read_is_heard(tmp_path):
    with pytest.raises(FileNotFoundError), file_work() as files:
        files.read(tmp_path / "absent")


def test_a_fault_of_the_caller_is_the_one_that_is_raised(tmp_path):
    with pytest.raises(ValueError, match="ours"), file_work() as files:
        files.read(tmp_path / "absent")
        raise ValueError("ours")
