"""A small process between us and the server: where we end, by SIGKILL too, it ends the server's whole group.

vLLM's engine and workers outlive the SIGKILL of the process that started them (measured with 0.32.0). This
one reads a pipe that only we hold open: its end is ours. Run as a program; the standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_PATIENCE = 15.0  # seconds between SIGTERM and SIGKILL
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux's prctl: orphans of the server become ours


def watch(pipe: int, command: list[str]) -> int:
    """Run the command until it ends or the pipe does; no process of it is left. Returns its exit status."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # we are told through the pipe
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_plain_signals
    ) as child:
        while child.poll() is None and not select.select([pipe], [], [], 0.2)[0]:
            pass
        _end(child)
        return child.wait()


def _plain_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_PATIENCE)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    until = time.monotonic() + _PATIENCE
    while (left := _children()) and time.monotonic() < until:
        for number in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.05)


def _children() -> list[int]:
    """Our children by Linux's /proc, orphans of the server among them; zombies are waited for elsewhere."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # pid (name) state ppid: the name may hold spaces and parentheses.
            state, parent = place.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                found.append(int(place.parent.name))
    return found


if __name__ == "__main__":
    sys.exit(watch(int(sys.argv[1]), sys.argv[2:]))
