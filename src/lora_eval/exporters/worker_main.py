"""What the processes share in which quantization libraries run: how they are asked and speak, and their seed.

Only the standard library is imported: beside `awq_worker` a copy of this runs where our package is not.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

Say = Callable[[dict[str, Any]], None]
"""Writes one line to the process that waits."""
_KNOWN = (ValueError, NotImplementedError, RuntimeError, TypeError, KeyError, OSError)


def answer(task: Path, work: Callable[[dict[str, Any], Say], dict[str, Any]]) -> int:
    """Do `work` with the task's values; what it returns is the last line, or `{"error": ...}`. Lines are JSON
    on the first stdout; whatever libraries print (banners, progress) goes to stderr.
    """
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=lines, flush=True)

    values = json.loads(task.read_text("utf-8"))
    _seed(values["settings"]["seed"])
    try:
        found = work(values, say)
    except _KNOWN as error:
        say({"error": f"{type(error).__name__}: {error}"})
        raise
    say(found)
    return 0


def _seed(seed: int) -> None:
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
