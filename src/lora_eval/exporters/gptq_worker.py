"""The process in which gptqmodel runs: `python -m lora_eval.exporters.gptq_worker TASK.json`. Its home."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from lora_eval.exporters.worker_main import Say, answer


def work(values: dict[str, Any], say: Say) -> dict[str, Any]:
    """Quantize as the task says, load the result again; returns how many modules were quantized."""
    names = quantize(values, say)
    check_reload(Path(values["out"]), names, values["rows"][0])
    return {"modules": len(names)}


def quantize(values: dict[str, Any], say: Say) -> list[str]:
    """Quantize and save the model; returns the names of the quantized modules."""
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    settings = values["settings"]
    config = QuantizeConfig(
        bits=settings["bits"],
        group_size=settings["group_size"],
        sym=settings["sym"],
        desc_act=settings["desc_act"],
        # Its own order of columns within the groups, better than none; it excludes desc_act.
        act_group_aware=not settings["desc_act"],
    )
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    model = GPTQModel.load(values["model"], config, device=device)
    layers = model.model.config.num_hidden_layers

    def layer_complete(layer_idx: int, submodule_finalized: bool) -> None:
        if submodule_finalized:
            say({"layer": layer_idx + 1, "layers": layers})

    model.layer_callback = layer_complete
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in values["rows"]]
    # All rows count: by default it leaves out those of up to ten tokens, and divides by zero where none is
    # left (7.6.0, whose `quantize` does not pass its own argument for it on).
    model.prepare_dataset = partial(model.prepare_dataset, calibration_data_min_length=0)
    model.quantize(rows, batch_size=4)
    names = [name for name, module in model.model.named_modules() if hasattr(module, "qweight")]
    model.save(values["out"])
    return names


def check_reload(out: Path, names: list[str], row: list[int]) -> None:
    """Raise RuntimeError where transformers does not load the model with its quantized modules and finite
    logits.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(out, device_map="cpu", local_files_only=True)
    except AttributeError as error:  # as of GPT-2, whose initialization asks quantized layers for a weight
        raise RuntimeError(f"transformers cannot open the quantized model: {error}") from error
    found = [name for name, module in model.named_modules() if hasattr(module, "qweight")]
    if not found or set(found) != set(names):
        raise RuntimeError(f"{len(names)} modules were quantized, {len(found)} are after loading again")
    with torch.no_grad():
        logits = model(torch.tensor([row[:64]])).logits
    if not torch.isfinite(logits).all():
        raise RuntimeError("the quantized model gives logits that are not finite")


if __name__ == "__main__":
    sys.exit(answer(Path(sys.argv[1]), work))
