"""Files written in windows: every byte at its place, the digest known, and faults heard."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_eval.exporters import direct_file
from lora_eval.exporters.direct_file import open_direct
from lora_eval.fingerprint import sha256_file

_WINDOW = 8192


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(direct_file, "WINDOW", _WINDOW)


def _tensor(data):
    import torch

    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _check(path, data, monkeypatch):
    assert path.read_bytes() == data
    monkeypatch.setattr(type(path), "open", None)  # the digest is known
    assert sha256_file(path) == hashlib.sha256(data).hexdigest()


@settings(deadline=None)  # the first import of torch
@given(
    size=st.integers(1, 5 * _WINDOW),
    cuts=st.lists(st.integers(0, 5 * _WINDOW), max_size=8),
    order=st.randoms(),
)
def test_pieces_of_any_length_in_any_order(tmp_path_factory, size, cuts, order):
    path = tmp_path_factory.mktemp("direct") / "file"
    data = random.Random(size).randbytes(size)
    places = sorted({0, size, *(cut for cut in cuts if cut < size)})
    pieces = list(pairwise(places))
    order.shuffle(pieces)
    with open_direct(path, size) as file:
        for first, end in pieces:
            file.put(first, _tensor(data[first:end]))
    with pytest.MonkeyPatch.context() as patch:
        _check(path, data, patch)


def test_several_threads_and_more_windows_than_may_wait(tmp_path, monkeypatch):
    data = random.Random(0).randbytes(40 * _WINDOW + 5)
    pieces = list(range(0, len(data), 1000))
    random.Random(1).shuffle(pieces)
    with open_direct(tmp_path / "file", len(data)) as file, ThreadPoolExecutor(4) as pool:
        done = [pool.submit(file.put, first, _tensor(data[first : first + 1000])) for first in pieces]
    assert [task.result() for task in done] == [None] * len(pieces)
    _check(tmp_path / "file", data, monkeypatch)


def test_memory_of_written_windows_is_used_again(tmp_path, monkeypatch):
    taken = []
    take = direct_file._aligned_memory
    monkeypatch.setattr(direct_file, "_aligned_memory", lambda: taken.append(1) or take())
    data = random.Random(0).randbytes(100 * _WINDOW)
    with open_direct(tmp_path / "file", len(data)) as file:
        for first in range(0, len(data), 1000):
            file.put(first, _tensor(data[first : first + 1000]))
    assert len(taken) <= direct_file._WAITING + 1
    _check(tmp_path / "file", data, monkeypatch)


def test_memory_waits_for_its_digest(tmp_path, monkeypatch):
    class Slow:
        def __init__(self):
            self._digest = hashlib.new("sha256")
            self.hexdigest = self._digest.hexdigest

        def update(self, data):
            time.sleep(0.002)
            self._digest.update(data)

    monkeypatch.setattr(hashlib, "sha256", Slow)
    data = random.Random(0).randbytes(30 * _WINDOW)
    with open_direct(tmp_path / "file", len(data)) as file:
        file.put(0, _tensor(data))
    monkeypatch.undo()
    _check(tmp_path / "file", data, monkeypatch)


@pytest.mark.parametrize("refused", ["at once", "when written"])
def test_a_file_system_without_direct_writes(tmp_path, monkeypatch, refused):
    if refused == "at once":
        monkeypatch.setattr(direct_file, "_set_direct", lambda descriptor, *, on: False)
    else:
        write = os.pwrite
        on = []
        monkeypatch.setattr(direct_file, "_set_direct", lambda descriptor, *, on: switch(on))

        def switch(to):
            on[:] = [to]
            return to

        def pwrite(descriptor, data, place):
            if on[0]:
                raise OSError(errno.EINVAL, "larger blocks, please")
            return write(descriptor, data, place)

        monkeypatch.setattr(os, "pwrite", pwrite)
    data = random.Random(0).randbytes(3 * _WINDOW + 5)
    with open_direct(tmp_path / "file", len(data)) as file:
        file.put(0, _tensor(data))
    _check(tmp_path / "file", data, monkeypatch)


def test_a_full_disk_is_heard_before_the_end(tmp_path, full_disk):
    full_disk(4 * _WINDOW)
    with pytest.raises(OSError, match="too large"), open_direct(tmp_path / "file", 1000 * _WINDOW) as file:
        for first in range(0, 1000 * _WINDOW, _WINDOW):
            file.put(first, _tensor(bytes(_WINDOW)))
            last = first
    assert last < 900 * _WINDOW


def test_a_file_that_was_not_finished_is_not_known(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(ValueError, match="ours"), open_direct(path, 3 * _WINDOW) as file:
        file.put(0, _tensor(bytes(3 * _WINDOW)))
        raise ValueError("ours")
    state = path.stat()
    path.write_bytes(b"b" * 100)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert sha256_file(path) == hashlib.sha256(b"b" * 100).hexdigest()


def test_a_file_that_was_changed_since_is_read_again(tmp_path):
    path = tmp_path / "file"
    with open_direct(path, 100) as file:
        file.put(0, _tensor(b"a" * 100))
    path.write_bytes(b"b" * 100)
    assert sha256_file(path) == hashlib.sha256(b"b" * 100).hexdigest()


def test_nothing_that_is_there_is_written_over(tmp_path):
    (tmp_path / "file").write_bytes(b"theirs")
    with pytest.raises(FileExistsError), open_direct(tmp_path / "file", 100):
        pass
    assert (tmp_path / "file").read_bytes() == b"theirs"
