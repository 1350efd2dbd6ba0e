"""What the base's tensors are: which files hold them, which layer each belongs to, which were quantized.

Decided from a model built without memory (device "meta") by transformers' own rules, never by lists of names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_eval.errors import ModelError
from lora_eval.exporters.weights import TensorInfo, read_header
from lora_eval.models.locate import read_config, weight_files

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer of the model: (out, in), and how its weight lies in the file."""

    shape: tuple[int, int]
    transposed: bool  # GPT-2's Conv1D stores (in, out)
    quantized: bool  # by bitsandbytes, in training


@dataclass(frozen=True, slots=True)
class BaseFiles:
    """The base's shards with their tensors, and the linear layer that a tensor's name stands for."""

    folder: Path
    config: dict[str, Any]
    shards: dict[Path, dict[str, TensorInfo]]
    layers: dict[str, Layer]  # by the tensor's name in the files
    modules: dict[str, str]  # layer's path in the model -> the tensor's name in the files
    tied: frozenset[str]  # paths of modules that share one weight


def open_base(folder: Path, quantization: dict[str, Any] | None) -> BaseFiles:
    """Return what the files of a 16 or 32 bit base hold; `quantization` is that of the training.

    Raises:
        ModelError: no safetensors, weights already quantized, or names that transformers rearranges.
    """
    config = read_config(folder, "config.json")
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise ModelError(
            f"{folder}: its weights are stored quantized ({method}); an adapter can only be merged into "
            "16 or 32 bit weights: give the original that it was made from"
        )
    files = weight_files(folder)
    if any(path.suffix != ".safetensors" for path in files):
        raise ModelError(
            f"{folder}: only safetensors can be merged, found {files[0].name}; load it with transformers and "
            "save_pretrained it into a new folder"
        )
    shards = {path: read_header(path) for path in files}
    model = _build(folder)
    kinds, tied = _linear_layers(model), _tied_modules(model)
    quantized = _quantized_modules(model, quantization) if quantization else set()
    modules = _stored_names(folder, model.base_model_prefix, kinds, shards, quantized)
    layers = {
        modules[path]: Layer(shape, transposed, path in quantized)
        for path, (shape, transposed) in kinds.items()
        if path in modules
    }
    return BaseFiles(folder, config, shards, layers, modules, tied)


def linear_inputs(folder: Path) -> dict[str, int]:
    """Return the input size of every linear layer but the one that gives the logits."""
    model = _build(folder)
    head = model.get_output_embeddings()
    kinds = _linear_layers(model)
    return {path: shape[1] for path, (shape, _) in kinds.items() if model.get_submodule(path) is not head}


def _build(folder: Path) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise ModelError(f"{folder}: transformers cannot build this model: {error}") from error


def _linear_layers(model: Any) -> dict[str, tuple[tuple[int, int], bool]]:
    """Return (out, in) and whether it is stored transposed, for every linear layer."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    found: dict[str, tuple[tuple[int, int], bool]] = {}
    for path, module in model.named_modules():
        if isinstance(module, Conv1D):
            found[path] = (tuple(module.weight.shape[::-1]), True)
        elif isinstance(module, nn.Linear):
            found[path] = (tuple(module.weight.shape), False)
    return found


def _tied_modules(model: Any) -> frozenset[str]:
    """Return the modules whose weight is that of another module too."""
    from torch import nn

    model.tie_weights()
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter):
            owners.setdefault(id(weight), []).append(path)
    return frozenset(path for paths in owners.values() if len(paths) > 1 for path in paths)


def _quantized_modules(model: Any, quantization: dict[str, Any]) -> set[str]:
    """Return the layers that transformers replaces by bitsandbytes' when it loads this model so."""
    import bitsandbytes
    from transformers import BitsAndBytesConfig
    from transformers.quantizers import AutoHfQuantizer

    quantizer = AutoHfQuantizer.from_config(BitsAndBytesConfig(**quantization), pre_quantized=False)
    quantizer.preprocess_model(model, device_map={"": "cpu"})
    return {path for path, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)}


def _stored_names(
    folder: Path,
    prefix: str,
    kinds: dict[str, tuple[tuple[int, int], bool]],
    shards: dict[Path, dict[str, TensorInfo]],
    quantized: set[str],
) -> dict[str, str]:
    """Return the tensor that holds each layer's weight; a checkpoint of the bare model lacks the prefix."""
    stored = {name: info.shape for tensors in shards.values() for name, info in tensors.items()}
    names: dict[str, str] = {}
    problems = []
    for path, (shape, transposed) in kinds.items():
        candidates = (f"{path}.weight", f"{path.removeprefix(f'{prefix}.')}.weight")
        name = next((candidate for candidate in candidates if candidate in stored), None)
        expected = shape[::-1] if transposed else shape
        if name is not None and stored[name] == expected:
            names[path] = name
        elif name is not None:
            problems.append(f"{name} has shape {list(stored[name])}, the model's {path} {list(expected)}")
        elif path in quantized:
            problems.append(f"no tensor holds {path}.weight")
    if problems:
        raise ModelError(
            f"{folder}: the weights do not lie in the files as in the model; merging such a layout is not "
            f"supported yet: {'; '.join(problems[:_SHOWN])}"
        )
    return names
