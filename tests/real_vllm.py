"""Which tests need a real vLLM. tox runs them in an environment of its own (`tox -e vllm`, docs/vllm.md).
Where there is none they are skipped, but under CI=true they fail, so that none is passed over.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest

from lora_eval.errors import InputError
from lora_eval.serve import find_vllm


def needs_vllm(*, here: bool = False) -> list[pytest.MarkDecorator]:
    """Marks of tests that need vLLM in $LORA_EVAL_VLLM_PYTHON or in this Python; `here`: in this one."""
    reason = _missing(here)
    absent = bool(reason) and os.environ.get("CI") != "true"
    return [pytest.mark.vllm, pytest.mark.slow, pytest.mark.skipif(absent, reason=reason)]


def left_behind(processes: Iterable[psutil.Process]) -> set[Path]:
    """Return the shared memory and the folders of sockets that the processes have now."""
    found = set()
    for process in processes:
        maps = Path(f"/proc/{process.pid}/maps").read_text("utf-8", errors="replace")
        found |= {
            Path(line.split()[-1]) for line in maps.splitlines() if line.split()[-1].startswith("/dev/shm/")
        }
        sockets = process.environ().get("VLLM_RPC_BASE_PATH")
        found |= {Path(sockets)} if sockets else set()
    return {place for place in found if place.exists()}


def _missing(here: bool) -> str:
    if here:
        found = importlib.util.find_spec("vllm") is not None
        return (
            "" if found else "vllm is not installed here; it needs an environment of its own (docs/vllm.md)"
        )
    try:
        find_vllm()
    except InputError as error:  # MissingExtraError too
        return str(error)
    return ""
