"""Nothing of a server or of an engine is left, however we end: a stand-in starts workers as vLLM does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lora_eval import watchdog
from lora_eval.watchdog import Watchdog, make_folder, temporary_files

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
# A server with a worker in its group and one in a session of its own. Both ignore SIGTERM; all have memory
# that they share (one of them like vLLM's C++ code, of which Python does not know), and a socket.
_WORKER = """
import os, signal, socket, sys, time
from multiprocessing import shared_memory
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.stdout.write("")
memory = shared_memory.SharedMemory(create=True, size=1000)
print(os.getpid(), "/dev/shm/" + memory.name, flush=True)
time.sleep(120)
"""
_SERVER = f"""
import mmap, os, socket, subprocess, sys, tempfile, time, uuid
from multiprocessing import resource_tracker, shared_memory
tracker = resource_tracker.getfd()
for own in (False, True):
    code = f"from multiprocessing import resource_tracker as t; t._resource_tracker._fd = {{tracker}}\\n"
    worker = subprocess.Popen(
        [sys.executable, "-c", code + {_WORKER!r}], start_new_session=own, pass_fds=(tracker,),
        stdout=subprocess.PIPE, text=True)
    print(worker.stdout.readline().strip(), flush=True)
place = f"/dev/shm/vllm_dist_{{uuid.uuid4().hex}}-tp:0-cpushm_0"
with open(place, "wb+") as file:
    file.truncate(1000)
    mapped = mmap.mmap(file.fileno(), 1000)
print(os.getpid(), place, flush=True)
path = tempfile.gettempdir() + "/" + str(uuid.uuid4())
socket.socket(socket.AF_UNIX).bind(path)
print(os.getpid(), path, flush=True)
time.sleep(120)
"""
_OWNER = """
import subprocess, sys, time
from pathlib import Path
from lora_eval.watchdog import Watchdog, temporary_files
folder, as_server, code = Path(sys.argv[1]), sys.argv[2] == "server", sys.argv[3]
command = [sys.executable, "-c", code]
import os
environment = os.environ | temporary_files(folder)
earlier = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
found = Watchdog(folder, command if as_server else (), env=environment)
if not as_server:
    subprocess.Popen(command, env=environment)
    time.sleep(1)  # as vLLM's start, in which its processes are seen
    found.complete()
later = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
print(earlier.pid, later.pid, flush=True)
if "close" in sys.argv:
    sys.stdin.readline()
    found.close()
    print("closed", flush=True)
time.sleep(120)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    found = make_folder()
    yield found
    assert not found.exists()


def _start(folder: Path, *more: str) -> tuple[subprocess.Popen[str], set[Path], list[psutil.Process]]:
    """Return the owner, what its server made, and the owner's other children."""
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(folder), *more[:1], _SERVER, *more[1:]],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert owner.stdout is not None
    lines = [owner.stdout.readline().split() for _ in range(5)]
    made = {Path(second) for _, second in lines if second.startswith("/")}
    assert len(made) == 4
    assert all(place.exists() for place in made)
    (others,) = [line for line in lines if not line[1].startswith("/")]
    return owner, made, [psutil.Process(int(number)) for number in others]


@pytest.mark.parametrize("kind", ["server", "engine"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_owners_end_is_the_end_of_all(folder: Path, kind: str, number: int) -> None:
    owner, made, others = _start(folder, kind)
    everything = psutil.Process(owner.pid).children(recursive=True)
    # The watchdog, the server, its tracker, its two workers.
    assert len(set(everything) - set(others)) == 5
    owner.send_signal(number)
    owner.wait()
    _close(owner)
    assert not psutil.wait_procs(set(everything) - set(others), timeout=60)[1]
    assert not [place for place in made if place.exists()]
    for other in others:
        other.kill()


def test_a_closed_engine_leaves_the_owners_other_children_alone(folder: Path) -> None:
    owner, made, others = _start(folder, "engine", "close")
    everything = set(psutil.Process(owner.pid).children(recursive=True)) - set(others)
    assert owner.stdin is not None
    assert owner.stdout is not None
    owner.stdin.write("\n")
    owner.stdin.flush()
    assert owner.stdout.readline() == "closed\n"
    assert all(other.status() != psutil.STATUS_ZOMBIE for other in others)
    left = [p for p in everything if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    # Python's tracker belongs to the server that is gone: it ends by itself.
    assert not psutil.wait_procs(left, timeout=10)[1]
    assert not [place for place in made if place.exists()]
    for process in (psutil.Process(owner.pid), *others):
        process.kill()
    owner.wait()
    _close(owner)


def _close(owner: subprocess.Popen[str]) -> None:
    for stream in (owner.stdin, owner.stdout):
        if stream is not None:
            stream.close()


def test_a_server_that_is_killed_leaves_nothing(folder: Path) -> None:
    found = Watchdog(
        folder, [sys.executable, "-c", _SERVER], stdout=subprocess.PIPE,
        env=os.environ | temporary_files(folder),
    )  # fmt: skip
    assert found.process.stdout is not None
    lines = [found.process.stdout.readline().split() for _ in range(4)]
    everything = psutil.Process(found.process.pid).children(recursive=True)
    (server,) = psutil.Process(found.process.pid).children()
    server.kill()
    assert found.process.wait(60) != 0
    found.process.stdout.close()
    assert not psutil.wait_procs(everything, timeout=40)[1]
    places = [Path(os.fsdecode(place)) for _, place in lines]
    # Of the server's own mapping nobody can tell any more once it has gone.
    assert [place for place in places if place.exists()] == places[2:3]
    places[2].unlink()
    found.close()


def test_a_command_that_ends_gives_its_status(folder: Path) -> None:
    started = time.monotonic()
    found = Watchdog(folder, [sys.executable, "-c", "raise SystemExit(7)"])
    assert found.process.wait() == 7
    assert time.monotonic() - started < 30
    found.close()


def test_what_others_share_is_not_taken_for_the_servers(tmp_path: Path) -> None:
    text = "7f-8a rw-s 00:1a 5 /dev/shm/psm_1234abcd\n7f-8a r--s 00:1a 6 /dev/shm/model.safetensors\n"
    text += "7f-8a r--s 00:1a 6 /dev/shm/psm_/adapter (deleted)\n7f-8a r--s 00:1a 6 /home/dev/shm/psm_2\n"
    assert watchdog._SHARED.findall(text) == ["/dev/shm/psm_1234abcd"]


def test_sockets_fit_in_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    found = make_folder()
    assert len(os.fsencode(found)) + 37 <= 103
    found.rmdir()


def test_what_the_user_set_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/kept")
    monkeypatch.delenv("VLLM_RPC_BASE_PATH", raising=False)
    assert temporary_files(tmp_path) == {
        "TORCHINDUCTOR_CACHE_DIR": "/kept", "TMPDIR": str(tmp_path), "VLLM_RPC_BASE_PATH": str(tmp_path)
    }  # fmt: skip
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    assert temporary_files(tmp_path)["TORCHINDUCTOR_CACHE_DIR"] == default_cache_dir()
