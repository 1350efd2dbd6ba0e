"""Does an adapter fit its base? Decided from files alone: configurations, headers of weights, lineage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_eval.errors import ModelError
from lora_eval.fingerprint import fingerprint_folder
from lora_eval.models.lineage import read_lineage
from lora_eval.models.locate import (
    adapter_weights,
    open_config,
    read_adapter_config,
    read_config,
    resolve_model,
    vocabulary_size,
)

_SHOWN = 5
_PREFIX = "base_model.model."
# These initialisations subtract from or replace the base's own weights, so that switching the adapter off
# does not give the base back (measured for PiSSA and OLoRA; https://github.com/huggingface/peft/issues/2184).
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Of these, PEFT subtracts the same again from a fresh base when it loads the adapter (measured: reloaded and
# live logits are equal), so that the adapter can be measured on a copy of its own.
_REPEATABLE = ("pissa", "olora")
# Why the others cannot (measured with PEFT 0.21.2 on a tiny model: logits reloaded against live).
_LOST = {
    "pissa_niter": "its decomposition is drawn at random, and loaded again it is another one",
    "corda": "PEFT cannot load it without the data that it was initialised from",
    "loftq": "PEFT quantizes the base anew when it loads it, and only on a GPU",
    "lora_ga": "PEFT loads it onto the unchanged base, where it is another model",
}
# Part of a tensor's name, and which of its axes must be as long as which axis of the base's weight.
_SHARED_AXES = (
    (".lora_A.", 1, 1),
    (".lora_B.", 0, 0),
    (".lora_embedding_A", 1, 0),
    (".lora_embedding_B", 0, 1),
    (".lora_magnitude_vector", 0, 0),
)
Shape = tuple[int, ...]


def changes_the_base(init_lora_weights: str) -> bool:
    """True where this initialisation (in lower case) changes the base's own weights, so that switching the
    adapter off does not give the base back.
    """
    return init_lora_weights.startswith(_CHANGE_THE_BASE)


def needs_own_base(adapter: Path, base: Path) -> bool:
    """True for an adapter that changes the base's own weights in a way that loading it repeats (PiSSA,
    OLoRA, another size of the vocabulary): it needs a copy of the base that nothing else uses.
    """
    initial = str(read_adapter_config(adapter).get("init_lora_weights", True)).lower()
    return initial in _REPEATABLE or resized_vocabulary(adapter, base) is not None


def resized_vocabulary(adapter: Path, base: Path) -> tuple[int, frozenset[str]] | None:
    """Return the rows of the vocabulary that training gave the base, and the modules for which the adapter
    brings them; None where the vocabulary is the base's own.
    """
    whole = _whole_weights(_header(adapter_weights(adapter)))
    size = vocabulary_size(read_config(base, "config.json"))
    if all(shape[0] == size for shape in whole.values()):  # mostly: then no model need be built
        return None
    found = _resized(whole, module_shapes(base))
    if found is None:
        return None
    return found[1][0], frozenset(module for module, shape in whole.items() if shape == found[1])


def check_adapter(adapter: Path, base: Path) -> None:
    """Raise ModelError where the adapter cannot be evaluated on this base; loads no weights.

    Refused: no configuration or weights; another kind than LoRA; one that changes the base's own weights
    otherwise than `needs_own_base` says; a target or shape that the base does not have; a lineage that names
    a base with another fingerprint.
    """
    config = read_adapter_config(adapter)
    weights = adapter_weights(adapter)
    _check_kind(adapter, config)
    resolve_model(str(base))
    _check_shapes(adapter, base, config, _header(weights))
    _check_lineage(adapter, base, config)


def _check_kind(adapter: Path, config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(
            f"{adapter}: peft_type is {kind!r}; only LORA (DoRA and rsLoRA included) can share its base"
        )
    initial = str(config.get("init_lora_weights", True)).lower()
    if changes_the_base(initial) and initial not in _REPEATABLE:
        why = next(
            (text for name, text in _LOST.items() if initial.startswith(name)), "it cannot be repeated"
        )
        raise ModelError(
            f"{adapter}: init_lora_weights is '{initial}', which changes the base's own weights: {why}; save "
            "it again as an ordinary LoRA with save_pretrained(path_initial_model_for_weight_conversion=...) "
            "or merge it and give it as --arm"
        )
    if config.get("alora_invocation_tokens"):
        raise ModelError(
            f"{adapter}: alora_invocation_tokens is set: this LoRA acts only after those tokens, which the "
            "engine cannot place; expected an ordinary LoRA"
        )
    if config.get("bias", "none") != "none":
        raise ModelError(
            f"{adapter}: bias is '{config['bias']}': the base's own biases were trained, so the base cannot "
            "be measured beside it; merge it and give it as --arm"
        )
    if config.get("layer_replication"):
        raise ModelError(
            f"{adapter}: layer_replication changes the base's layers; merge it and give it as --arm"
        )


def _header(path: Path) -> dict[str, Shape]:
    """Return the shape of every tensor in a weights file."""
    if path.suffix == ".bin":
        import torch

        state = torch.load(path, map_location="meta", weights_only=True)
        return {name: tuple(tensor.shape) for name, tensor in state.items()}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ModelError(f"{path}: cannot be read as safetensors: {error}; copy the adapter again") from error


def _check_shapes(adapter: Path, base: Path, config: dict[str, Any], header: dict[str, Shape]) -> None:
    if not header:
        raise ModelError(f"{adapter}: the weights file holds no tensor")
    shapes = module_shapes(base)
    if (resized := _resized(_whole_weights(header), shapes)) is not None:
        old, new = resized  # tied or not, the other end of the model has the same vocabulary
        shapes = {module: new if shape == old else shape for module, shape in shapes.items()}
    # Whole parameters (fused experts) have no module with a two-dimensional weight to compare with.
    whole = tuple(str(name).rpartition(".")[0] for name in config.get("target_parameters") or ())
    embedded = {key.partition(".lora_embedding_A")[0] for key in header if ".lora_embedding_A" in key}
    problems = [
        problem
        for key, shape in sorted(header.items())
        if not any(part and f".{part}." in key for part in whole)
        for problem in _misfit(key, shape, shapes, embedded)
    ]
    if problems:
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        lines = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
        named = config.get("base_model_name_or_path")
        raise ModelError(
            f"{adapter}: made for another base than {base} "
            f"(adapter_config.json names '{named}'):{lines}{more}"
        )


def module_shapes(base: Path) -> dict[str, Shape]:
    """Return (out, in) of every module of the base that has a weight, by its path in the model.

    The model is built without memory (device "meta"), so that quantized files and sharded ones look alike.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = open_config(base)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise ModelError(
            f"{base}: transformers cannot build a causal language model from config.json: {error}"
        ) from error
    shapes: dict[str, Shape] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is not None:
            shape = tuple(weight.shape)
            # GPT-2's Conv1D stores its weight transposed; `nf` is its number of outputs.
            shapes[name] = shape[::-1] if hasattr(module, "nf") else shape
    return shapes


def _whole_weights(header: dict[str, Shape]) -> dict[str, Shape]:
    """Return the shapes of the matrices that the adapter holds itself, by their module in the base."""
    found: dict[str, Shape] = {}
    for key, shape in header.items():
        module, _, parameter = key.removeprefix(_PREFIX).rpartition(".")
        if parameter == "weight" and len(shape) == 2 and not any(part in key for part, *_ in _SHARED_AXES):
            found[_base_module(module)] = shape
    return found


def _resized(whole: dict[str, Shape], shapes: dict[str, Shape]) -> tuple[Shape, Shape] | None:
    """Return the base's shape of the vocabulary's weights and the adapter's, where only the rows differ."""
    pairs = {(shapes[module], shape) for module, shape in whole.items() if shape != shapes.get(module, shape)}
    old, new = next(iter(pairs)) if len(pairs) == 1 else ((), ())
    return (old, new) if pairs and old[1:] == new[1:] != () else None


def _base_module(module: str) -> str:
    """Return the base's module under PEFT's copy of an embedding that it adapts."""
    return module.removesuffix(".base_layer").removesuffix(".token_adapter")


def _misfit(key: str, shape: Shape, shapes: dict[str, Shape], embedded: set[str]) -> Iterator[str]:
    """Say how one tensor of the adapter disagrees with the base's module; LoRA on those in `embedded` is that
    of an embedding, where DoRA has one length for each column.
    """
    name = key.removeprefix(_PREFIX)
    for part, axis, base_axis in _SHARED_AXES:
        module, found, _ = name.partition(part)
        if not found:
            continue
        if part == ".lora_magnitude_vector" and key.partition(part)[0] in embedded:
            base_axis = 1
        if module not in shapes:
            yield f"{key}: the base has no module {module}"
        elif shape[axis] != shapes[module][base_axis]:
            yield f"{key}: has shape {list(shape)}, the base's {module} has {list(shapes[module])}"
        return
    module, _, parameter = name.rpartition(".")
    module = _base_module(module)
    if parameter == "weight" and module not in shapes:
        yield f"{key}: the base has no module {module}"
    elif parameter == "weight" and shapes[module] != shape:
        yield f"{key}: has shape {list(shape)}, the base's {module} has {list(shapes[module])}"


def _check_lineage(adapter: Path, base: Path, config: dict[str, Any]) -> None:
    """Equal shapes do not make it the same base: where the lineage names one by fingerprint, that counts."""
    lineage = read_lineage(adapter)
    bases = [variant for variant in lineage.variants if variant.kind == "base"] if lineage else []
    trained = bases[-1].fingerprint if bases else None
    if trained is None:
        return
    given = fingerprint_folder(base)
    made = read_lineage(base)
    last = made.variants[-1] if made else None
    derived = last is not None and last.made_by == "lora-eval export base" and last.parent == trained
    if given != trained and not derived:
        named = (lineage.base_model if lineage else None) or config.get("base_model_name_or_path")
        raise ModelError(
            f"{adapter}: was trained on '{named}' ({_short(trained)}), but the base given is {base} "
            f"({_short(given)}); give the base it was trained on"
        )


def _short(fingerprint: str) -> str:
    return fingerprint[:19]
