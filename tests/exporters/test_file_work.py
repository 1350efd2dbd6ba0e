"""Digests are known when the work is over; a fault does not wait for them, and is heard."""

from __future__ import annotations

import hashlib

import pytest

from lora_eval.exporters.file_work import file_work
from lora_eval.fingerprint import sha256_file


def test_what_was_read_is_not_read_again(tmp_path, monkeypatch):
    path = tmp_path / "read"
    path.write_bytes(b"base" * 5000)
    with file_work() as files:
        files.read(path)
        files.read(path)
    monkeypatch.setattr(type(path), "open", None)
    assert sha256_file(path) == hashlib.sha256(b"base" * 5000).hexdigest()


def test_a_file_that_cannot_be_read_is_heard(tmp_path):
    with pytest.raises(FileNotFoundError), file_work() as files:
        files.read(tmp_path / "absent")


def test_a_fault_of_the_caller_is_the_one_that_is_raised(tmp_path):
    with pytest.raises(ValueError, match="ours"), file_work() as files:
        files.read(tmp_path / "absent")
        raise ValueError("ours")
