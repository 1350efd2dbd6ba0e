"""`lora-eval serve` as a command of its own, which does not outlive its test."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

_PATIENCE = 120  # seconds; the command needs two on a quiet machine


class Running(NamedTuple):
    """A command that is ready: its process, its URL, the names it serves, and what it says on stderr."""

    process: subprocess.Popen[str]
    url: str
    models: list[str]
    said: IO[str]


@contextlib.contextmanager
def serve_command(*arguments: object, vllm: Sequence[str] = ()) -> Iterator[Running]:
    """Start `lora-eval serve ARGUMENTS -- VLLM` on a free port, and yield when it is ready; then end it."""
    # Where there is setpriv (util-linux), the command ends with this process too, however that ends.
    tied = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    words = [*map(str, arguments), "--port", "0", "--json", "--", *vllm]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [*tied, sys.executable, "-m", "lora_eval", "serve", *words],
            stdout=subprocess.PIPE, stderr=said, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                said.seek(0)
                raise AssertionError(said.read()[-3000:])
            told = json.loads(line)
            yield Running(process, told["url"], told["models"], said)
        finally:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()  # vLLM's processes then end by themselves: see test_vllm_server.py
                process.wait()
            assert process.stdout is not None
            process.stdout.close()
