"""Would the server that the recipe names serve the adapter? Asked before anything is trained."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

from lora_eval.errors import RecordError
from lora_eval.models.quiet import quiet
from lora_eval.protocols import DeployRequest, Server
from lora_eval.recipes import lora_config
from lora_eval.records import Recipe
from lora_eval.registry import get


def check_target(recipe: Recipe, base: Path) -> None:
    """Return where the recipe names no `target_server`, or one that serves the adapter which it describes.

    The adapter's names and shapes come from PEFT on a model without memory, so every rule of
    `lora-eval deploy` about adapters holds here too.

    Raises:
        RecordError: the server would refuse the adapter, or answer with another model; all reasons.
        PluginError: no such server.
    """
    if recipe.target_server is None:
        return
    server: Server = get("server", recipe.target_server)
    with tempfile.TemporaryDirectory(prefix="lora-eval-target-") as scratch:
        folder = Path(scratch) / "adapter"
        _save_empty(recipe, base, folder)
        findings = server.lint(DeployRequest(base, base.name, {"planned-adapter": folder}))
    problems = [
        f"target_server: {server.name} {server.version}: {finding.rule}: {finding.reason}"
        + (f" (see {finding.issue})" if finding.issue else "")
        for finding in findings
        if finding.severity in ("refused", "ignored") and finding.arm == "planned-adapter"
    ]
    if problems:
        last = "target_server: change the options above, or leave it out and merge the adapter to serve it"
        raise RecordError(f"recipe '{recipe.name}'", [*problems, last])


def _save_empty(recipe: Recipe, base: Path, folder: Path) -> None:
    """Write the adapter that the recipe describes, with names and shapes of its matrices and no values."""
    import torch
    from peft import get_peft_model, get_peft_model_state_dict
    from transformers import AutoConfig, AutoModelForCausalLM

    config = lora_config(recipe)
    with quiet(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base, local_files_only=True))
        try:
            model = get_peft_model(model, config)
        except (TypeError, ValueError) as error:
            raise RecordError(f"recipe '{recipe.name}'", [f"lora: {error}"]) from error
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
    config.save_pretrained(folder)
    _write_header({name: tuple(tensor.shape) for name, tensor in state.items()}, folder)


def _write_header(shapes: dict[str, tuple[int, ...]], folder: Path) -> None:
    """Write adapter_model.safetensors with a header and a hole for the values (float32)."""
    header: dict[str, Any] = {}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
