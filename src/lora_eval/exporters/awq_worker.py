"""The process in which llm-compressor runs: `python awq_worker.py TASK.json`, in an environment of its own.

The home of llmcompressor. Nothing of this package is imported here: it is not installed there. Speaks in JSON
lines on its first stdout; whatever libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import random
import sys
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

_PACKAGES = ("llmcompressor", "compressed-tensors", "transformers", "torch")


def main(task: Path) -> int:
    """Quantize as the task says; the last line names the quantized modules and the packages."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    values = json.loads(task.read_text("utf-8"))
    try:
        modules = quantize(values, answers)
    except (ValueError, NotImplementedError, RuntimeError, TypeError, KeyError, OSError) as error:
        say(answers, {"error": f"{type(error).__name__}: {error}"})
        raise
    say(answers, {"modules": modules, "packages": {name: version(name) for name in _PACKAGES}})
    return 0


def quantize(values: dict[str, Any], answers: IO[str]) -> list[str]:
    """Quantize and save the model; returns the names of the quantized modules."""
    import numpy
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from transformers import AutoModelForCausalLM

    settings = values["settings"]
    random.seed(settings["seed"])
    numpy.random.seed(settings["seed"])
    torch.manual_seed(settings["seed"])
    if not torch.accelerator.is_available():
        never_pin_memory()
    model = AutoModelForCausalLM.from_pretrained(values["model"], dtype="auto", local_files_only=True)
    if model.dtype == torch.float32:
        model.to(torch.bfloat16)  # scales and the layers beside are stored in it, and servers want 16 bits
    head = model.get_output_embeddings()
    if not any(isinstance(module, torch.nn.Linear) and module is not head for module in model.modules()):
        raise ValueError("it has no torch.nn.Linear layer but the one that gives the logits")
    report_layers(model, answers)
    weights = {"num_bits": settings["bits"], "type": "int", "symmetric": settings["sym"],
               "strategy": "group", "group_size": settings["group_size"]}  # fmt: skip
    ignore = [name for name, module in model.named_modules() if module is head]
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    rows = values["rows"]
    oneshot(
        model=model,
        dataset=Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(ids) for ids in rows]}),
        recipe=[AWQModifier(), QuantizationModifier(config_groups=groups, ignore=ignore)],
        max_seq_length=settings["max_length"],
        num_calibration_samples=len(rows),
    )
    names = [name for name, module in model.named_modules() if hasattr(module, "quantization_scheme")]
    model.save_pretrained(values["out"], save_compressed=True)
    return names


def never_pin_memory() -> None:
    """Make llm-compressor run without an accelerator: the one place for its pinning fault.

    0.14.0.1 pins calibration memory whether or not there is a device to copy it to (line 155 of its
    `pipelines/cache.py`), and ends with "Cannot access accelerator device when none is available".
    """
    from llmcompressor.pipelines.cache import IntermediatesCache

    IntermediatesCache.pin_memory = lambda self, *arguments, **options: None


def report_layers(model: Any, answers: IO[str]) -> None:
    """Say of each decoder layer when it begins: layers are calibrated one after the other."""
    import torch

    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    layers = max(lists, key=len, default=())
    begun = 0

    def begin(place: int) -> None:
        nonlocal begun
        if place >= begun:
            begun = place + 1
            say(answers, {"layer": place, "layers": len(layers)})

    for place, layer in enumerate(layers):
        layer.register_forward_pre_hook(lambda module, arguments, place=place: begin(place))


def say(answers: IO[str], event: dict[str, Any]) -> None:
    """Write one line to the process that waits."""
    print(json.dumps(event), file=answers, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
