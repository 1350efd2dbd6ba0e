"""The commands that make an arm servable, ready to be pasted; none where our own exports would refuse it."""

from __future__ import annotations

import shlex
from pathlib import Path

from lora_eval.models.mergeable import DRIFTING, initial_of, merge_refusals
from lora_eval.servers.inputs import Adapter, Model


def can_merge(adapter: Adapter) -> bool:
    """Whether `export merge` takes such an adapter: LoRA in safetensors, with options that weights show."""
    kind = adapter.config.get("peft_type")
    return kind == "LORA" and not adapter.pickled and not merge_refusals(adapter.config)


def can_convert(adapter: Adapter) -> bool:
    """Whether `export lora` takes it: nothing but pairs of A and B, on a base that was not quantized after
    its beginning had changed it.
    """
    changed = initial_of(adapter.config) in DRIFTING
    quantized = adapter.lineage is not None and bool(adapter.lineage.quantization)
    return can_merge(adapter) and len(adapter.lora) == len(adapter.tensors) and not (changed and quantized)


def merge_fix(adapter: Adapter, model: Model) -> str | None:
    """Return the command that makes one model of base and adapter, which any server can serve."""
    if not can_merge(adapter) or not _takes_biases(adapter, model):
        return None
    base = _trained_on(adapter, model)
    return command_line("export merge", base=base, adapter=adapter.folder, out=f"{adapter.name}-merged")


def plain_fix(adapter: Adapter, model: Model) -> str | None:
    """Return the command that writes it as a plain LoRA, else the one that merges it."""
    if not can_convert(adapter):
        return merge_fix(adapter, model)
    base = _trained_on(adapter, model)
    return command_line("export lora", base=base, adapter=adapter.folder, out=f"{adapter.name}-plain")


def quantized_fix(adapter: Adapter, model: Model) -> str | None:
    """Return the commands for an adapter that shall run on fewer bits: merged first, then quantized."""
    first = merge_fix(adapter, model)
    quantize = command_line("export gptq", model=f"{adapter.name}-merged", out=f"{adapter.name}-gptq")
    return first and f"{first} && {quantize}"


def requantize_fix(model: Model, kind: str) -> str | None:
    """Return the command that quantizes again what a GPTQ or AWQ model was made from, with our defaults,
    which servers take; None where its lineage does not say what that was.
    """
    made = model.lineage.variants if model.lineage else ()
    sources = [variant for variant in made if variant.kind in ("base", "merged")]
    if not sources:
        return None
    return command_line(f"export {kind}", model=sources[-1].path, out=f"{model.name}-{kind}")


def dequantize_fix(adapter: Adapter, base: str) -> str:
    """Return the command that writes the base as the adapter's training saw it."""
    out = f"{Path(base).name or 'base'}-as-trained"
    command = command_line("export base", base=base, adapter=adapter.folder, out=out)
    return f"{command} --dequantized"


def _takes_biases(adapter: Adapter, model: Model) -> bool:
    """Whether the base's layers have biases that those of the adapter's B can be added to."""
    own = {model.module(lora.module) for lora in adapter.lora} if adapter.config.get("lora_bias") else set()
    return all(f"{module}.bias" in model.tensors for module in own)


def _trained_on(adapter: Adapter, model: Model) -> str:
    """The folder of the weights that the adapter was trained on: the model's, or what the model was made from
    (a base that was dequantized or quantized).
    """
    made = model.lineage.variants if model.lineage else ()
    if not made:
        return str(model.folder)
    bases = (
        [variant for variant in adapter.lineage.variants if variant.kind == "base"] if adapter.lineage else []
    )
    known = {variant.fingerprint: variant.path for variant in made}
    return known.get(bases[-1].fingerprint if bases else None, made[0].path)


def command_line(command: str, **options: object) -> str:
    """Return `lora-eval COMMAND` with these options, as a shell takes it."""
    words = [word for key, value in options.items() for word in (f"--{key}", shlex.quote(str(value)))]
    return " ".join(["lora-eval", command, *words])
