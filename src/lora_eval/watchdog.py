"""A small process that ends what we started, however we end, and removes what is left of it.

vLLM's engine and workers outlive the SIGKILL of the process that started them (measured with 0.32.0). This
one reads a pipe that only we hold open: its end is ours. Run as a program; the standard library only.

What else vLLM 0.32 leaves, and what happens to it here:
- Its queues, 400 MB in /dev/shm. Python's `multiprocessing.resource_tracker`, a process beside the server's,
  removes them when all that used them are gone: so that one is not killed.
- Its sockets, and other small files, where temporary files go; after a clean end too. So it gets a folder for
  them that goes with it.
- The shared memory of its C++ code, 4 MB for each worker, after a clean end too: removed by the names that
  its processes had mapped.
"""

from __future__ import annotations

import contextlib
import ctypes
import getpass
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_PATIENCE = 15.0  # seconds between SIGTERM and SIGKILL
_TRACKERS = 5.0  # seconds that the trackers get when all others are gone
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux's prctl: orphans of the server become ours
_SOCKET_PATH = 103  # bytes that the path of a socket may have: 107 on Linux, 103 on macOS
_SOCKET_NAME = len("/lora-eval-12345678/") + 36  # vLLM's are UUIDs
_TRACKER = b"resource_tracker import main"  # Python's own, and joblib's
# What Python, vLLM and SGLang give random names: nobody else's file is mapped under such a name.
_SHARED = re.compile(r" (/dev/shm/(?:psm_|sem\.mp-|vllm_dist_|sglang_loads_)[^/\s]+)\n")


def make_folder() -> Path:
    """Return a new folder for a server's temporary files, whose path is short enough for its sockets."""
    usual = tempfile.gettempdir()
    fits = len(os.fsencode(usual)) + _SOCKET_NAME <= _SOCKET_PATH
    return Path(tempfile.mkdtemp(prefix="lora-eval-", dir=usual if fits else "/tmp"))


def temporary_files(folder: Path) -> dict[str, str]:
    """Return the environment that puts a server's temporary files into the folder, but what torch compiles to
    where it went before: the next server needs it too.
    """
    try:
        user = getpass.getuser()
    except (KeyError, ImportError, OSError):
        user = f"uid_{os.getuid()}"
    chosen = {
        "VLLM_RPC_BASE_PATH": str(folder),
        "TORCHINDUCTOR_CACHE_DIR": str(Path(tempfile.gettempdir(), f"torchinductor_{user}")),
    }
    given = {name: os.environ[name] for name in chosen if name in os.environ}
    return chosen | given | {"TMPDIR": str(folder)}


class Watchdog:
    """Our hold on a watchdog, `process`. It watches over the command that it starts, or without one over the
    children that this process gets until `complete()`; it removes the folder at the end. `options` are those
    of `subprocess.Popen`.
    """

    def __init__(self, folder: Path, command: Sequence[str] = (), **options: Any) -> None:
        reading, self._pipe = os.pipe()
        self._others = _children(os.getpid())
        others = ",".join(map(str, self._others))
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-I", __file__, str(reading), str(folder), str(os.getpid()), others, *command],
            stdin=subprocess.DEVNULL, pass_fds=(reading,), start_new_session=True, **options,
        )  # fmt: skip
        os.close(reading)

    def complete(self) -> None:
        """Leave out the children that come from now on."""
        found = _but_trackers(_children(os.getpid()) - self._others - {self.process.pid})
        with contextlib.suppress(BrokenPipeError):
            os.write(self._pipe, (",".join(map(str, found)) + "\n").encode())

    def close(self) -> None:
        """End what is watched over, and remove the folder."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        self.process.wait()


def watch(pipe: int, folder: Path, command: Sequence[str]) -> int:
    """Run the command until it ends or the pipe does; no process of it is left. Returns its exit status."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_plain_signals
    ) as child:
        while child.poll() is None and not select.select([pipe], [], [], 0.2)[0]:
            pass
        _end([child.pid], lambda: _family([os.getpid()]) - {os.getpid()}, folder)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)  # where there is no /proc
        return child.wait()


def guard(pipe: int, folder: Path, owner: int, others: set[int]) -> int:
    """When the pipe ends, end the children that its owner got until its line with their numbers, or until
    then.
    """
    found: dict[int, int] = {}
    while not select.select([pipe], [], [], 0.2)[0]:
        found |= _starts(_but_trackers(_children(owner) - others - {os.getpid()}))
    if line := os.read(pipe, 1 << 16):
        found = _starts(_numbers(line.decode()))
        os.read(pipe, 1)
    running = _running()
    known = {number for number in found if number in running and running[number].start == found[number]}
    asked = sorted(known)

    def left() -> set[int]:
        # Children of one that has ended are not to be found through it any more: they are kept in mind.
        known.update(_family(known))
        return known & set(_running())

    _end(asked, left, folder)
    return 0


def _end(asked: Sequence[int], left: Callable[[], set[int]], folder: Path) -> None:
    """Ask some to end, kill what is left but the trackers, wait for these, and remove what all have left."""
    shared = set().union(*map(_shared, left()))
    for number in asked:
        _send(number, signal.SIGTERM)
    _until(lambda: not set(asked) & set(_running()), _PATIENCE)
    shared |= set().union(*map(_shared, left()))

    def killed() -> bool:
        some = _but_trackers(left())
        for number in some:
            _send(number, signal.SIGKILL)
        return not some

    _until(killed, _PATIENCE)
    if not _until(lambda: not left(), _TRACKERS):
        for number in left():
            _send(number, signal.SIGKILL)
    for place in shared:
        with contextlib.suppress(OSError):
            Path(place).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _until(true: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def _plain_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _send(number: int, what: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(number, what)


class _Running(NamedTuple):
    """A process's parent, and its start in clock ticks, which tells it from a later one of its number."""

    parent: int
    start: int


def _running() -> dict[int, _Running]:
    """All processes by Linux's /proc but zombies."""
    found = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # pid (name) state ppid ...: the name may hold spaces and parentheses. The start is field 22.
            fields = place.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                found[int(place.parent.name)] = _Running(int(fields[1]), int(fields[19]))
    return found


def _starts(numbers: Iterable[int]) -> dict[int, int]:
    running = _running()
    return {number: running[number].start for number in numbers if number in running}


def _numbers(text: str) -> set[int]:
    return {int(number) for number in text.split(",") if number.strip()}


def _children(owner: int) -> set[int]:
    return {number for number, process in _running().items() if process.parent == owner}


def _family(roots: Iterable[int]) -> set[int]:
    """The roots that run, and what descends from any."""
    running = _running()
    found = set(roots)
    while more := {n for n, process in running.items() if process.parent in found} - found:
        found |= more
    return found & set(running)


def _but_trackers(processes: Iterable[int]) -> set[int]:
    found = set()
    for number in processes:
        with contextlib.suppress(OSError):
            if _TRACKER not in Path(f"/proc/{number}/cmdline").read_bytes():
                found.add(number)
    return found


def _shared(number: int) -> set[str]:
    """Names in /dev/shm that the process has mapped."""
    with contextlib.suppress(OSError):
        return set(_SHARED.findall(Path(f"/proc/{number}/maps").read_text("utf-8", errors="replace")))
    return set()


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # we are told through the pipe
    _pipe, _folder, _owner, _others, *_command = sys.argv[1:]
    if _command:
        sys.exit(watch(int(_pipe), Path(_folder), _command))
    sys.exit(guard(int(_pipe), Path(_folder), int(_owner), _numbers(_others)))
