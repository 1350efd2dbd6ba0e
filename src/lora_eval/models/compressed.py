"""Folders in the compressed-tensors format (AWQ, and whatever else llm-compressor writes)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_eval.extras import require
from lora_eval.models.locate import read_config

METHOD = "compressed-tensors"


def dequantizing_config(folder: Path) -> Any:
    """Return the folder's configuration with which transformers unpacks the weights while it loads them, so
    that every layer is a plain one; None where the folder is to be opened as any other.

    Without it transformers 5.23 unpacks at the first forward pass, with bars, and cannot load asymmetric
    weights at all (it expects unpacked zero points). It is used where weights are all that is quantized, in
    one way: otherwise plain layers would leave out what happens to activations, and transformers unpacks all
    layers by the first scheme.

    Raises:
        MissingExtraError: the folder is in this format and compressed-tensors is not installed.
    """
    stored = read_config(folder, "config.json").get("quantization_config") or {}
    if stored.get("quant_method") != METHOD:
        return None
    require("compressed_tensors", "awq")
    if not _only_weights(stored):
        return None
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    config.quantization_config["dequantize"] = True
    return config


def make_plain(model: Any) -> None:
    """Take away what transformers 5.19 leaves at layers that it has dequantized: scales, zero points, and a
    forward that looks at them. Later ones leave nothing.
    """
    for module in model.modules():
        if not hasattr(module, "quantization_scheme") or not hasattr(module, "weight"):
            continue
        for name in ("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"):
            if hasattr(module, name):
                delattr(module, name)
        for name in ("quantization_scheme", "quantization_status", "forward"):
            vars(module).pop(name, None)


def compressed_note(folder: Path, model: Any) -> tuple[str, ...]:
    """Return what a report must say about such a folder; empty for any other."""
    stored = read_config(folder, "config.json").get("quantization_config") or {}
    if stored.get("quant_method") != METHOD or not _only_weights(stored):
        return ()
    dtype = str(model.dtype).removeprefix("torch.")
    return (f"weights stored as {stored.get('format')} evaluated dequantized, in {dtype}",)


def _only_weights(stored: dict[str, Any]) -> bool:
    """Whether the stored configuration quantizes weights in one way, and nothing else."""
    groups = list((stored.get("config_groups") or {}).values())
    if len(groups) != 1 or stored.get("kv_cache_scheme") or stored.get("transform_config"):
        return False
    return not (groups[0].get("input_activations") or groups[0].get("output_activations"))
