"""Digests are known when the work is over; a fault does not wait for them, and is heard."""

from __future__ import annotations

import hashlib

import pytest

from lora_eval.exporters.file_work import file_work
from lora_eval.fingerprint import sha256_file


def test_digests_are_those_of_the_files(tmp_path, monkeypatch):
    read, written = tmp_path / "read", tmp_path / "written"
    read.write_bytes(b"base" * 1000)
    written.write_bytes(b"result" * 1000)
    with file_work() as files:
        files.read(read)
        files.read(read)
        files.written(written)
    monkeypatch.setattr(type(read), "open", None)  # nothing is read again
    digests = [sha256_file(path) for path in (read, written)]
    assert digests == [hashlib.sha256(data * 1000).hexdigest() for data in (b"base", b"result")]


def test_a_file_that_cannot_be_read_is_heard(tmp_path):
    with pytest.raises(FileNotFoundError), file_work() as files:
        files.read(tmp_path / "absent")


def test_a_fault_of_the_caller_is_the_one_that_is_raised(tmp_path):
    with pytest.raises(ValueError, match="ours"), file_work() as files:
        files.read(tmp_path / "absent")
        raise ValueError("ours")
