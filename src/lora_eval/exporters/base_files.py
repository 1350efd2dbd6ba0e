"""What the base's tensors are: which files hold them, which layer each belongs to, which were quantized.

Decided from a model built without memory (device "meta") by transformers' own rules, never by lists of names.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lora_eval.errors import ModelError
from lora_eval.exporters.weights import INDEX, TensorInfo, read_header
from lora_eval.models.locate import open_config, read_config, weight_files

_SHOWN = 5
Kind = Literal["linear", "conv1d", "embedding"]


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that LoRA can change: its weight as (out, in), or (tokens, hidden) of an embedding."""

    module: str  # path in the model
    kind: Kind
    shape: tuple[int, int]
    quantized: bool = False  # by bitsandbytes, in training

    @property
    def transposed(self) -> bool:
        """GPT-2's Conv1D stores (in, out)."""
        return self.kind == "conv1d"


@dataclass(frozen=True, slots=True)
class BaseFiles:
    """The base's shards with their tensors, and what each tensor is in the model."""

    folder: Path
    config: dict[str, Any]
    shards: dict[Path, dict[str, TensorInfo]]
    layers: dict[str, Layer]  # by the layer's path in the model
    parameters: dict[str, str]  # parameter's path in the model -> the tensor's name in the files
    names: dict[str, str]  # the same for parameters that have no tensor of their own, as they would be named
    tied: tuple[str, ...]  # paths of the modules that share the embedding's weight, the embedding first
    vocabulary: tuple[str, ...]  # paths of the input embedding and of the layer that gives the logits
    wide: frozenset[str]  # tensors in float32 that the model keeps so in whatever dtype it is loaded

    def tensor_of(self, module: str) -> str | None:
        """Return the tensor that holds a module's weight: its own, or that of the embedding it shares."""
        own = self.parameters.get(f"{module}.weight")
        if own is None and module in self.tied:
            found = (self.parameters.get(f"{other}.weight") for other in self.tied)
            return next((name for name in found if name is not None), None)
        return own

    def tensor(self, name: str) -> Any:
        """Return one tensor as it is stored, mapped into memory."""
        from safetensors import safe_open

        path = next(path for path, tensors in self.shards.items() if name in tensors)
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    def info(self, name: str) -> TensorInfo:
        """Return the tensor's shape and dtype (KeyError where there is none)."""
        return next(tensors[name] for tensors in self.shards.values() if name in tensors)


def open_base(folder: Path, quantization: dict[str, Any] | None) -> BaseFiles:
    """Return what the files of a 16 or 32 bit base hold; `quantization` is that of the training.

    Raises:
        ModelError: no safetensors, weights already quantized, names that transformers rearranges, or a
            tensor that no file holds.
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
    stored = {name: info for tensors in shards.values() for name, info in tensors.items()}
    _check_files(folder, files, stored)
    model = _build(folder)
    shapes, tied = _layers(model), _tied_modules(model)
    ends = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module]
    vocabulary = tuple(path for path, module in model.named_modules() if any(module is end for end in ends))
    paths = dict.fromkeys(name for name, _ in model.named_parameters(remove_duplicate=False))
    needed, wide = _needed_parameters(model), _wide(model, stored)
    quantized = _quantized_modules(model, quantization) if quantization else set()
    layers = {path: Layer(path, kind, shape, path in quantized) for path, (kind, shape) in shapes.items()}
    names = _file_names(model.base_model_prefix, list(paths), stored)
    parameters = {path: name for path, name in names.items() if name in stored}
    _check_complete(folder, needed, parameters)
    _check_layout(folder, layers, parameters, stored)
    return BaseFiles(folder, config, shards, layers, parameters, names, tied, vocabulary, wide)


def linear_inputs(folder: Path) -> dict[str, int]:
    """Return the input size of every linear layer but the one that gives the logits."""
    model = _build(folder)
    head = model.get_output_embeddings()
    return {
        path: shape[1]
        for path, (kind, shape) in _layers(model).items()
        if kind != "embedding" and model.get_submodule(path) is not head
    }


def _build(folder: Path) -> Any:
    with _no_collection():
        import torch
        from transformers import AutoModelForCausalLM

        config = open_config(folder)
        try:
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(config)
        except (ValueError, KeyError, OSError, ImportError) as error:
            raise ModelError(f"{folder}: transformers cannot build this model: {error}") from error


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect no garbage meanwhile: a fifth of importing transformers is spent on looking for it (0.6 of
    3.3 s), and there is none.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _layers(model: Any) -> dict[str, tuple[Kind, tuple[int, int]]]:
    """Return kind and (out, in) of every linear layer and embedding."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    found: dict[str, tuple[Kind, tuple[int, int]]] = {}
    for path, module in model.named_modules():
        if isinstance(module, Conv1D):
            found[path] = "conv1d", tuple(module.weight.shape[::-1])
        elif isinstance(module, nn.Linear):
            found[path] = "linear", tuple(module.weight.shape)
        elif isinstance(module, nn.Embedding):
            found[path] = "embedding", tuple(module.weight.shape)
    return found


def _tied_modules(model: Any) -> tuple[str, ...]:
    """Return the modules that share the input embedding's weight, the embedding first; empty where none."""
    model.tie_weights()
    embedding = model.get_input_embeddings()
    weight = getattr(embedding, "weight", None)
    sharing = [
        path
        for path, module in model.named_modules(remove_duplicate=False)
        if weight is not None and getattr(module, "weight", None) is weight
    ]
    sharing.sort(key=lambda path: model.get_submodule(path) is not embedding)
    return tuple(sharing) if len(sharing) > 1 else ()


def _quantized_modules(model: Any, quantization: dict[str, Any]) -> set[str]:
    """Return the layers that transformers replaces by bitsandbytes' when it loads this model so."""
    import bitsandbytes
    from transformers import BitsAndBytesConfig
    from transformers.quantizers import AutoHfQuantizer

    try:
        config = BitsAndBytesConfig(**quantization)
    except (TypeError, ValueError) as error:
        raise ModelError(f"the quantization {quantization} is no BitsAndBytesConfig: {error}") from error
    quantizer = AutoHfQuantizer.from_config(config, pre_quantized=False)
    quantizer.preprocess_model(model, device_map={"": "cpu"})
    return {path for path, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)}


def _needed_parameters(model: Any) -> list[set[str]]:
    """Return the parameters that transformers reads from the files, each as the paths that share it; empty
    for a model whose tensors have other names or shapes in the files.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    if get_model_conversion_mapping(model, add_legacy=False):
        return []
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    shared: dict[int, set[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        shared.setdefault(id(parameter), set()).add(path)
    return [
        paths
        for paths in shared.values()
        if not any(pattern.search(path) for pattern in ignored for path in paths)
    ]


def _wide(model: Any, stored: dict[str, TensorInfo]) -> frozenset[str]:
    """Return the float32 tensors that transformers loads as float32 also where it loads a model in 16 bits
    (the choice of experts of DeepSeek-V3 and GLM-4-MoE, among others).
    """
    kept = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
    patterns = [re.compile(pattern.replace("*", ".*")) for pattern in kept]
    return frozenset(
        name
        for name, info in stored.items()
        if info.dtype == "F32" and any(pattern.search(name) for pattern in patterns)
    )


def _file_names(prefix: str, paths: list[str], stored: dict[str, TensorInfo]) -> dict[str, str]:
    """Return each parameter's name in the files; a checkpoint of the bare model lacks the prefix."""
    bare = not any(path in stored for path in paths if path.startswith(f"{prefix}."))
    return {path: path.removeprefix(f"{prefix}.") if bare and path not in stored else path for path in paths}


def _check_layout(
    folder: Path,
    layers: dict[str, Layer],
    parameters: dict[str, str],
    stored: dict[str, TensorInfo],
) -> None:
    problems = []
    for path, layer in layers.items():
        name = parameters.get(f"{path}.weight")
        expected = layer.shape[::-1] if layer.transposed else layer.shape
        if name is not None and (found := stored[name].shape) != expected:
            problems.append(f"{name} has shape {list(found)}, the model's {path} {list(expected)}")
        elif name is None and layer.quantized:
            problems.append(f"no tensor holds {path}.weight")
    if problems:
        raise ModelError(
            f"{folder}: the weights do not lie in the files as in the model; merging such a layout is not "
            f"supported: {'; '.join(problems[:_SHOWN])}"
        )


def _check_files(folder: Path, files: list[Path], stored: dict[str, TensorInfo]) -> None:
    """Raise ModelError where files or tensors of a base are not there, by its index."""
    if not (folder / INDEX).is_file():
        if [path.name for path in files] != [INDEX.removesuffix(".index.json")]:
            raise ModelError(
                f"{folder}: holds {files[0].name} and no {INDEX}, which says what belongs to the model (and "
                "without which transformers does not open it); copy or download the model again"
            )
        return
    missing = sorted(set(read_config(folder, INDEX).get("weight_map", {})) - stored.keys())
    if missing and len(files) > 1:
        raise ModelError(
            f"{folder / INDEX}: names {len(missing)} tensors that no file holds, first {missing[0]}; copy or "
            "download the model again"
        )


def _check_complete(folder: Path, needed: list[set[str]], parameters: dict[str, str]) -> None:
    """Raise ModelError where the files lack a tensor, for which transformers would draw random numbers."""
    missing = [min(paths) for paths in needed if paths.isdisjoint(parameters)]
    if missing:
        raise ModelError(
            f"{folder}: no file holds {', '.join(missing[:_SHOWN])}"
            + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "")
            + ", which the model that config.json describes has; copy or download the model again"
        )
