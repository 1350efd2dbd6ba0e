"""The process in which llm-compressor runs, in an environment of its own: `awq` copies this and `worker_main`
there, and nothing else of this package. The home of llmcompressor.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lora_eval.exporters.worker_main import Say, answer

_PACKAGES = ("llmcompressor", "compressed-tensors", "transformers", "torch")


def quantize(values: dict[str, Any], say: Say) -> dict[str, Any]:
    """Quantize and save the model; returns the names of the quantized modules, and the packages."""
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from transformers import AutoModelForCausalLM

    settings = values["settings"]
    if not torch.accelerator.is_available():
        never_pin_memory()
    model = AutoModelForCausalLM.from_pretrained(values["model"], dtype="auto", local_files_only=True)
    if model.dtype == torch.float32:
        model.to(torch.bfloat16)  # scales and the layers beside are stored in it, and servers want 16 bits
    head = model.get_output_embeddings()
    if not any(isinstance(module, torch.nn.Linear) and module is not head for module in model.modules()):
        raise ValueError("it has no torch.nn.Linear layer but the one that gives the logits")
    report_layers(model, say)
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
    return {"modules": names, "packages": {name: version(name) for name in _PACKAGES}}


def never_pin_memory() -> None:
    """Make llm-compressor run without an accelerator: the one place for its pinning fault.

    0.14.0.1 pins calibration memory whether or not there is a device to copy it to (line 155 of its
    `pipelines/cache.py`), and ends with "Cannot access accelerator device when none is available".
    """
    from llmcompressor.pipelines.cache import IntermediatesCache

    IntermediatesCache.pin_memory = lambda self, *arguments, **options: None


def report_layers(model: Any, say: Say) -> None:
    """Say of each decoder layer when it begins: layers are calibrated one after the other."""
    import torch

    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    layers = max(lists, key=len, default=())
    begun = 0

    def begin(place: int) -> None:
        nonlocal begun
        if place >= begun:
            begun = place + 1
            say({"layer": place, "layers": len(layers)})

    for place, layer in enumerate(layers):
        layer.register_forward_pre_hook(lambda module, arguments, place=place: begin(place))


if __name__ == "__main__":
    sys.exit(answer(Path(sys.argv[1]), quantize))
