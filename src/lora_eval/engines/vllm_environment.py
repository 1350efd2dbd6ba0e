"""What vLLM finds when its processes start: environment variables, and where their output goes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_BINDING = "VLLM_CPU_OMP_THREADS_BIND"
_ENVIRONMENT = {
    # An input of max_length tokens and the token after it: vLLM counts both. No position beyond the model's
    # own is ever computed.
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # A crash of the model must end vLLM's process and not ours.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # stdout belongs to --json.
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}


def thread_binding(settings: Mapping[str, Any], cpus: Sequence[int]) -> dict[str, str]:
    """Return which CPUs each of vLLM's processes gets on a CPU, as vLLM's own variable: an even share each,
    or no binding where there are fewer CPUs than processes. Empty for one process.

    vLLM's own choice is a memory node (NUMA) for each, and an error on machines that have fewer.
    """
    ranks = int(settings.get("tensor_parallel_size", 1)) * int(settings.get("pipeline_parallel_size", 1))
    if ranks == 1:
        return {}
    share = len(cpus) // ranks
    parts = [cpus[rank * share : (rank + 1) * share] for rank in range(ranks)]
    return {_BINDING: "|".join(",".join(map(str, part)) for part in parts) if share else "nobind"}


@contextlib.contextmanager
def environment(settings: Mapping[str, Any]) -> Iterator[None]:
    """Set what vLLM reads from the environment; a binding of threads that is set already is kept."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else ()
    chosen = _ENVIRONMENT | ({} if _BINDING in os.environ else thread_binding(settings, cpus))
    before = {name: os.environ.get(name) for name in chosen}
    os.environ.update(chosen)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Send what is written to file descriptors 1 and 2 to the log: processes started meanwhile keep it."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    with log.open("ab") as file:
        for place in (1, 2):
            os.dup2(file.fileno(), place)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for place, old in zip((1, 2), saved, strict=True):
            os.dup2(old, place)
            os.close(old)
