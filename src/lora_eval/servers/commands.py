"""The commands that make an arm servable, ready to be pasted."""

from __future__ import annotations

import shlex
from pathlib import Path

from lora_eval.servers.inputs import Adapter, Model


def merge_fix(adapter: Adapter, model: Model) -> str:
    """Return the command that makes one model of base and adapter, which any server can serve."""
    return _line("export merge", base=model.folder, adapter=adapter.folder, out=f"{adapter.name}-merged")


def quantized_fix(adapter: Adapter, model: Model) -> str:
    """Return the commands for an adapter that shall run on fewer bits: merged first, then quantized."""
    merged = f"{adapter.name}-merged"
    quantize = _line("export gptq", model=merged, out=f"{adapter.name}-gptq")
    return f"{merge_fix(adapter, model)} && {quantize}"


def dequantize_fix(adapter: Adapter, base: str) -> str:
    """Return the command that writes the base as the adapter's training saw it."""
    out = f"{Path(base).name or 'base'}-as-trained"
    command = _line("export base", base=base, adapter=adapter.folder, out=out)
    return f"{command} --dequantized"


def _line(command: str, **options: object) -> str:
    words = [word for key, value in options.items() for word in (f"--{key}", shlex.quote(str(value)))]
    return " ".join(["lora-eval", command, *words])
