"""No process of a server is left, however we end: a stand-in starts workers as vLLM does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lora_eval.serve import watchdog

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
# A server with a worker in its group and one in a session of its own; both ignore SIGTERM.
_WORKER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(120)"
_SERVER = f"""
import subprocess, sys, time
for own in (False, True):
    worker = subprocess.Popen([sys.executable, "-c", {_WORKER!r}], start_new_session=own)
    print(worker.pid, flush=True)
print("up", flush=True)
time.sleep(120)
"""
_OWNER = f"""
import os, subprocess, sys, time
reading, pipe = os.pipe()
subprocess.Popen(
    [sys.executable, "-I", {str(watchdog.__file__)!r}, str(reading), sys.executable, "-c", {_SERVER!r}],
    pass_fds=(reading,), start_new_session=True)
os.close(reading)
time.sleep(120)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_owners_end_is_the_workers_end(number: int) -> None:
    owner = subprocess.Popen([sys.executable, "-c", _OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    lines = [owner.stdout.readline().strip() for _ in range(3)]
    workers = [psutil.Process(int(line)) for line in lines[:2]]
    assert lines[2] == "up"
    everything = psutil.Process(owner.pid).children(recursive=True)
    assert len(everything) == 4  # the watchdog, the server, its two workers
    owner.send_signal(number)
    owner.wait()
    owner.stdout.close()
    assert not psutil.wait_procs([*everything, *workers], timeout=40)[1]


def test_a_server_that_is_killed_leaves_no_worker() -> None:
    reading, pipe = os.pipe()
    watched = subprocess.Popen(
        [sys.executable, "-I", str(watchdog.__file__), str(reading), sys.executable, "-c", _SERVER],
        pass_fds=(reading,), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(reading)
    assert watched.stdout is not None
    workers = [psutil.Process(int(watched.stdout.readline())) for _ in range(2)]
    assert watched.stdout.readline().strip() == "up"
    (server,) = psutil.Process(watched.pid).children()
    server.kill()
    assert watched.wait(40) != 0
    watched.stdout.close()
    assert not psutil.wait_procs(workers, timeout=40)[1]
    os.close(pipe)


def test_a_command_that_ends_gives_its_status() -> None:
    reading, pipe = os.pipe()
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-I", watchdog.__file__, str(reading), sys.executable, "-c", "raise SystemExit(7)"],
        pass_fds=(reading,),
    )  # fmt: skip
    assert done.returncode == 7
    assert time.monotonic() - started < 30
    os.close(reading)
    os.close(pipe)
