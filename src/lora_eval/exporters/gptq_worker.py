"""The process in which gptqmodel runs: `python -m lora_eval.exporters.gptq_worker TASK.json`.

The home of gptqmodel. Speaks in JSON lines on its first stdout; whatever libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import IO, Any


def main(task: Path) -> int:
    """Quantize as the task says, load the result again, say what was found."""
    # gptqmodel prints a banner and progress on stdout: only we may write to the real one.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    values = json.loads(task.read_text("utf-8"))
    try:
        names = quantize(values, answers)
        check_reload(Path(values["out"]), names, values["rows"][0])
    except (ValueError, NotImplementedError, RuntimeError, TypeError, KeyError, OSError) as error:
        say(answers, {"error": f"{type(error).__name__}: {error}"})
        raise
    say(answers, {"modules": len(names)})
    return 0


def quantize(values: dict[str, Any], answers: IO[str]) -> list[str]:
    """Quantize and save the model; returns the names of the quantized modules."""
    import numpy
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    settings = values["settings"]
    random.seed(settings["seed"])
    numpy.random.seed(settings["seed"])
    torch.manual_seed(settings["seed"])
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
            say(answers, {"layer": layer_idx + 1, "layers": layers})

    model.layer_callback = layer_complete
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in values["rows"]]
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

    model = AutoModelForCausalLM.from_pretrained(out, device_map="cpu", local_files_only=True)
    found = [name for name, module in model.named_modules() if hasattr(module, "qweight")]
    if not found or set(found) != set(names):
        raise RuntimeError(f"{len(names)} modules were quantized, {len(found)} are after loading again")
    with torch.no_grad():
        logits = model(torch.tensor([row[:64]])).logits
    if not torch.isfinite(logits).all():
        raise RuntimeError("the quantized model gives logits that are not finite")


def say(answers: IO[str], event: dict[str, Any]) -> None:
    """Write one line to the process that waits."""
    print(json.dumps(event), file=answers, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
