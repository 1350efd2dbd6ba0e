"""Rules about one adapter beside its base: names, layers, shapes, ranks, and which base it was trained on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from lora_eval.records import Finding, Lineage
from lora_eval.servers.commands import dequantize_fix, merge_fix, quantized_fix
from lora_eval.servers.inputs import Adapter, LoraTensor, Model, layer_number

_SHOWN = 3
_EXPERTS = ".experts"
# What decides the values that a quantized layer multiplies by, with BitsAndBytesConfig's own defaults.
_ROUNDING = {
    "bnb_4bit_quant_type": "fp4",
    "bnb_4bit_use_double_quant": False,
    "bnb_4bit_compute_dtype": "float32",
    "llm_int8_skip_modules": None,
    "load_in_4bit": False,
    "load_in_8bit": False,
}


def name_findings(
    model: Model, adapters: Sequence[Adapter], reserved: Collection[str] = (), issue: str | None = None
) -> Iterator[Finding]:
    """Served names must tell the arms apart: none may be the base's, or one that the server keeps."""
    for adapter in adapters:
        if adapter.name == model.name:
            yield _found(
                adapter,
                "name",
                "refused",
                f"'{adapter.name}' is the base's served name too: a request could not say which it means; "
                f"give the adapter another name: --adapter NAME={adapter.folder}",
            )
        if adapter.name in reserved:
            yield _found(
                adapter,
                "name",
                "ignored",
                f"the server takes the name '{adapter.name}' for its base: requests for it get the base's "
                f"answers; give the adapter another name: --adapter NAME={adapter.folder}",
                issue=issue,
            )


def shape_findings(adapter: Adapter, model: Model) -> Iterator[Finding]:
    """Every A and B must have its layer in the base, of the right width, and no layer may be left out.

    vLLM 0.32 answers 200 to an adapter of a smaller base, copies it into a corner of its buffer and serves
    something else (measured: facts of export and serving, section 4).
    """
    if adapter.pickled:
        return
    if not adapter.lora and adapter.config.get("peft_type") == "LORA":
        yield _found(adapter, "shapes", "refused", "its file holds no LoRA matrices: save the adapter again")
        return
    problems = [problem for tensor in adapter.lora for problem in _misfits(tensor, model)]
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        yield _found(
            adapter,
            "shapes",
            "refused",
            f"made for another base than {model.folder}: {'; '.join(problems[:_SHOWN])}{more}. A server may "
            "load it all the same and answer with another model; give the base it was trained on "
            f"(adapter_config.json names '{adapter.config.get('base_model_name_or_path')}')",
        )
    else:
        yield from _layer_findings(adapter, model)
    if any(_EXPERTS in tensor.module for tensor in adapter.lora):
        yield _found(
            adapter,
            "experts",
            "warning",
            "it adapts experts, whose fused layers were not compared with the base's: ask the running server "
            "with `lora-eval smoke`",
        )


def rank_findings(adapter: Adapter, model: Model, largest: int | None, server: str) -> Iterator[Finding]:
    """The rank in the files must be the configured one (the scaling follows from it) and below the limit."""
    if largest is not None and adapter.rank > largest:
        reason = f"its rank is {adapter.rank}; {server} takes at most {largest}"
        yield _found(adapter, "rank", "refused", reason, fix=merge_fix(adapter, model))
    patterns = adapter.config.get("rank_pattern")
    said = adapter.config.get("r")
    wrong = [tensor for tensor in adapter.lora if tensor.rank != said]
    if wrong and not patterns:
        yield _found(
            adapter,
            "rank",
            "ignored",
            f"{wrong[0].name} has rank {wrong[0].rank}, adapter_config.json says r = {said}: the server "
            "scales by the configured one; copy the adapter again, both files",
        )


def target_findings(
    adapter: Adapter, model: Model, known: Collection[str], answer: str, severity: Any, issue: str | None
) -> Iterator[Finding]:
    """Say which adapted layers the server has no LoRA for."""
    unknown = [name for name in adapter.targets if name not in known]
    if unknown:
        yield _found(
            adapter,
            "target-modules",
            severity,
            f"it adapts {', '.join(unknown)}: {answer} {', '.join(known)}",
            issue=issue,
            fix=merge_fix(adapter, model),
        )


def partial_findings(adapter: Adapter, model: Model) -> Iterator[Finding]:
    """TGI and LoRAX drop a kind of layer as a whole where one of its layers has no LoRA (read in
    `prepare_weights` and `LoraWeights.load`: they return None).
    """
    gaps = [
        f"{target} in layers {', '.join(map(str, sorted(base - own)[:_SHOWN]))}"
        for target, (own, base) in sorted(_layers_by_target(adapter, model).items())
        if own < base
    ]
    if gaps:
        yield _found(
            adapter,
            "partial-layers",
            "ignored",
            f"it has no LoRA on {'; '.join(gaps)}: the server then leaves out these kinds of layers",
            fix=merge_fix(adapter, model),
        )


def base_findings(adapter: Adapter, model: Model) -> Iterator[Finding]:
    """An adapter belongs to the weights that its training saw (lineage.json says which).

    A QLoRA adapter on the original 16-bit base is another model: KL 4.5e-3 for each token against 6.3e-5 on
    the dequantized base (measured: facts of export and serving, section 1).
    """
    lineage = adapter.lineage
    if lineage is None:
        return
    trained, quantization = _trained_on(lineage), lineage.quantization
    made = model.lineage
    if quantization:
        yield from _quantized_training(adapter, model, quantization, trained)
        return
    origins = {variant.fingerprint for variant in made.variants} if made else set()
    if trained is None or trained == model.fingerprint:
        return
    if model.quantization and trained in origins:
        reason = "the base is a quantized copy of the one it was trained on: another model than the measured"
        yield _found(adapter, "base", "ignored", reason, fix=quantized_fix(adapter, model))
        return
    yield _found(
        adapter,
        "base",
        "ignored",
        f"was trained on '{lineage.base_model}' ({trained[:19]}), and {model.folder} is another model "
        f"({model.fingerprint[:19]}): give the base it was trained on",
    )


def _quantized_training(
    adapter: Adapter, model: Model, quantization: dict[str, Any], trained: str | None
) -> Iterator[Finding]:
    base = str(model.folder)
    made = model.lineage
    steps = made.steps if made else ()
    step = next((step for step in reversed(steps) if step.tool == "lora-eval export base"), None)
    if made is not None and step is not None:
        known = {variant.fingerprint for variant in made.variants}
        same = _rounding(step.arguments.get("quantization") or {}) == _rounding(quantization)
        if same and (trained is None or trained in known):
            return
        base = made.variants[0].path
        reason = (
            f"{model.folder} is a dequantized base, but "
            + ("of another model than" if same else "of another quantization than that under which")
            + (" the adapter was trained on" if same else " the adapter was trained")
        )
    else:
        kind = quantization.get("bnb_4bit_quant_type", "8-bit")
        reason = (
            f"it was trained on a base quantized by bitsandbytes ({kind}); {model.folder} is not that base "
            "dequantized, and none of the pinned servers quantizes its base in this way: served so it is "
            "another model than the one measured"
        )
    issue = "https://github.com/predibase/lorax/issues/318"
    yield _found(adapter, "qlora-base", "ignored", reason, issue=issue, fix=dequantize_fix(adapter, base))


def _rounding(quantization: dict[str, Any]) -> dict[str, Any]:
    found = {key: quantization.get(key, default) for key, default in _ROUNDING.items()}
    found["bnb_4bit_compute_dtype"] = str(found["bnb_4bit_compute_dtype"]).removeprefix("torch.")
    return found


def _trained_on(lineage: Lineage) -> str | None:
    bases = [variant for variant in lineage.variants if variant.kind == "base"]
    return bases[-1].fingerprint if bases else None


def _misfits(tensor: LoraTensor, model: Model) -> Iterator[str]:
    if _EXPERTS in tensor.module:
        return
    own = model.module(tensor.module)
    number, layers = layer_number(tensor.module), model.value("num_hidden_layers", "n_layer")
    if own is None:
        beyond = number is not None and layers is not None and number >= int(layers)
        yield (
            f"{tensor.module}: the base has {layers} layers"
            if beyond
            else f"{tensor.module}: the base has no such layer"
        )
        return
    shape = model.modules[own]
    if len(shape) != 2:
        return  # stored packed, in a form whose widths are not in the header
    transposed = tensor.embedding  # an embedding is stored as (tokens, hidden), A is (rank, tokens)
    axis = (0 if transposed else 1) if tensor.side == "A" else (1 if transposed else 0)
    expected = shape[axis]
    # GPT-2's Conv1D stores (in, out): a width that is the layer's other one is right there.
    if expected and tensor.width != expected and not _conv1d(model, own, tensor):
        yield f"{tensor.name} is {list(tensor.shape)}, the base's {own} {list(shape)}"


def _conv1d(model: Model, own: str, tensor: LoraTensor) -> bool:
    stored = model.modules[own]
    return model.config.get("model_type") == "gpt2" and tensor.width == stored[0 if tensor.side == "A" else 1]


def _layers_by_target(adapter: Adapter, model: Model) -> dict[str, tuple[set[int], set[int]]]:
    """For each adapted kind of layer: the numbers of the layers with LoRA, and of those in the base."""
    own: dict[str, set[int]] = {}
    for tensor in adapter.lora:
        number = layer_number(tensor.module)
        if number is not None and _EXPERTS not in tensor.module:
            own.setdefault(tensor.module.rpartition(".")[2], set()).add(number)
    base: dict[str, set[int]] = {}
    for module in model.modules:
        number = layer_number(module)
        if number is not None:
            base.setdefault(module.rpartition(".")[2], set()).add(number)
    return {target: (numbers, base.get(target, set())) for target, numbers in own.items()}


def _layer_findings(adapter: Adapter, model: Model) -> Iterator[Finding]:
    """The first layers only, and nobody chose them: made for a base of fewer layers, which fits by shape."""
    if adapter.config.get("layers_to_transform") is not None:
        return
    layers = _layers_by_target(adapter, model)
    if not layers:
        return
    top = max(max(own) for own, _ in layers.values())
    short = [base and own == {n for n in base if n <= top} < base for own, base in layers.values()]
    if all(short):
        yield _found(
            adapter,
            "layer-count",
            "refused",
            f"it has LoRA in the first {top + 1} layers only, the base has "
            f"{model.value('num_hidden_layers', 'n_layer')}: made for a smaller base, or for chosen layers, "
            "which layers_to_transform in adapter_config.json then has to say",
        )


def _found(
    adapter: Adapter,
    rule: str,
    severity: Any,
    reason: str,
    *,
    issue: str | None = None,
    fix: str | None = None,
) -> Finding:
    return Finding(arm=adapter.name, rule=rule, severity=severity, reason=reason, issue=issue, fix=fix)
