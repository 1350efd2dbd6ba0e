"""What vLLM finds when its processes start: environment variables, and where their output goes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_eval.errors import InputError

_BINDING = "VLLM_CPU_OMP_THREADS_BIND"
_GPUS = "CUDA_VISIBLE_DEVICES"
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


def ranks(settings: Mapping[str, Any]) -> int:
    """Return how many processes, or GPUs, one copy of the model takes."""
    return int(settings.get("tensor_parallel_size", 1)) * int(settings.get("pipeline_parallel_size", 1))


def thread_binding(settings: Mapping[str, Any], cpus: Sequence[int], copies: int = 1) -> dict[str, str]:
    """Return which of its CPUs each process of one copy gets, as vLLM's own variable: an even share each, or
    no binding where there are fewer CPUs than processes. Empty where one process has the machine to itself.

    vLLM's own choice is a memory node (NUMA) for each, and an error on machines that have fewer.
    """
    count = ranks(settings)
    if count * copies == 1:
        return {}
    share = len(cpus) // count
    parts = [cpus[rank * share : (rank + 1) * share] for rank in range(count)]
    return {_BINDING: "|".join(",".join(map(str, part)) for part in parts) if share else "nobind"}


def visible_gpus(settings: Mapping[str, Any], gpus: Sequence[str], part: tuple[int, int]) -> dict[str, str]:
    """Return the GPUs of copy `part[0]` of `part[1]`, as CUDA's own variable. Empty without GPUs, and for one
    copy.

    Raises:
        InputError: there are fewer GPUs than all copies take.
    """
    number, copies = part
    if copies == 1 or not gpus:
        return {}
    each = ranks(settings)
    if len(gpus) < each * copies:
        raise InputError(
            f"data_parallel_size={copies}: {copies} copies on {each} GPU{'s' * (each > 1)} each need "
            f"{each * copies}, and there are {len(gpus)}"
        )
    return {_GPUS: ",".join(gpus[number * each : (number + 1) * each])}


def _share(found: Sequence[Any], part: tuple[int, int]) -> Sequence[Any]:
    """The part of copy `part[0]` of `part[1]`: all where there is too little for an even share."""
    each = len(found) // part[1]
    return found[part[0] * each : (part[0] + 1) * each] or found


def _all_gpus() -> list[str]:
    import torch

    if _GPUS in os.environ:
        return [gpu for gpu in os.environ[_GPUS].split(",") if gpu]
    return [str(number) for number in range(torch.cuda.device_count())]


@contextlib.contextmanager
def environment(
    settings: Mapping[str, Any], part: tuple[int, int] = (0, 1), more: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Set what vLLM reads from the environment, for copy `part[0]` of `part[1]`, and `more`; a binding of
    threads that is set already is kept.
    """
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else ()
    chosen = (
        _ENVIRONMENT | dict(more or {}) | visible_gpus(settings, _all_gpus() if part[1] > 1 else (), part)
    )
    if _BINDING not in os.environ:
        chosen |= thread_binding(settings, _share(cpus, part), part[1])
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


class _Interrupted(BaseException):
    """Ctrl-C or SIGTERM, under a name that vLLM does not know."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C, and SIGTERM where it is heard, end vLLM's start: its `zmq_socket_ctx` drops a
    KeyboardInterrupt and goes on (measured with 0.32).
    """

    def hear(*_: object) -> None:
        raise _Interrupted

    here = threading.current_thread() is threading.main_thread()
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if here and callable(signal.getsignal(n))]
    before = {number: signal.signal(number, hear) for number in numbers}
    try:
        yield
    except _Interrupted as error:
        raise KeyboardInterrupt from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
