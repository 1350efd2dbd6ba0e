"""Quantization in a process of its own, which speaks in JSON lines on its stdout.

Each line is one event: `{"layer": 3, "layers": 12}` is progress; the last one is the answer, or
`{"error": "..."}` for what the library says of this model.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_eval.errors import LoraEvalError, ModelError
from lora_eval.protocols import ExportRequest

_LOG_LINES = 15


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """Yield a temporary folder for a worker's files."""
    with tempfile.TemporaryDirectory(prefix=f"lora-eval-{name}-") as folder:
        yield Path(folder)


def run_worker(
    command: Sequence[str | Path],
    task: Mapping[str, Any],
    request: ExportRequest,
    *,
    library: str,
    scratch: Path,
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """Run `command TASK.json` in the scratch folder and return its last event.

    The task also holds the folders `model` and `out`. What libraries print goes to a log, or to stderr with
    the option `verbose`.

    Raises:
        ModelError: the library cannot quantize this model.
        LoraEvalError: the process ended otherwise; holds the end of its log.
    """
    place = scratch / "task.json"
    # Absolute: the worker runs in another folder, and would take a relative path for a Hub repository.
    folders = {"model": str(request.base.absolute()), "out": str(request.out.absolute())}
    place.write_text(json.dumps(folders | dict(task)), "utf-8")
    log = scratch / "log.txt"
    with (
        log.open("wb") as sink,
        subprocess.Popen(
            [*map(str, command), str(place)],
            stdout=subprocess.PIPE,
            stderr=None if request.options.get("verbose") else sink,
            env=dict(environment),
            cwd=scratch,
            text=True,
        ) as worker,
    ):
        try:
            answer = _follow(worker.stdout or (), request)
            status = worker.wait()
        finally:
            if worker.poll() is None:
                worker.kill()
    if "error" in answer:
        raise ModelError(f"{library} cannot quantize this model: {answer['error']}")
    if status or not answer:
        tail = "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-_LOG_LINES:])
        raise LoraEvalError(f"{library} ended with status {status}:\n{tail}")
    return answer


def worker_environment(scratch: Path) -> dict[str, str]:
    """Return our environment variables, with temporary files in the scratch folder and without a network."""
    return os.environ | {
        "TOKENIZERS_PARALLELISM": "false",
        "TMPDIR": str(scratch),
        "HF_HUB_OFFLINE": "1",
    }


def _follow(lines: Iterable[str], request: ExportRequest) -> dict[str, Any]:
    """Pass the worker's progress on; returns its last words."""
    answer: dict[str, Any] = {}
    for line in lines:
        event = json.loads(line)
        if "layer" in event:
            request.progress("quantizing", event["layer"], event["layers"])
        else:
            answer = event
    return answer
