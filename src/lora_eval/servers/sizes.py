"""How much memory a deployment takes, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lora_eval.records.deployment import ServingSizes
from lora_eval.servers.base_rules import head_width
from lora_eval.servers.inputs import Adapter, Model

WIDTHS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_STORED = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2}
_FLOATING = ("F64", "F32", "F16", "BF16")


def serving_sizes(model: Model, adapters: Sequence[Adapter], dtype: str, rank: int) -> ServingSizes:
    """Return the bytes of the weights in `dtype`, of one token's keys and values, and of one adapter's slot
    at `rank`.

    Keys and values: 2 x layers x key-value heads x head width x bytes (grouped-query attention, arXiv
    2305.13245); with latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1.3) layers x (latent rank +
    rotary width) x bytes. Sliding windows hold less: the figure is an upper bound there.
    """
    width = WIDTHS[dtype]
    weights = sum(
        math.prod(tensor.shape) * (width if tensor.dtype in _FLOATING else _STORED.get(tensor.dtype, 1))
        for tensor in model.tensors.values()
    )
    tokens, reason = kv_bytes(model, width)
    slot = sum(_slot(shape, rank) for shape in _adapted(model, adapters)) * width if adapters else None
    return ServingSizes(
        weight_bytes=weights, kv_bytes_per_token=tokens, adapter_slot_bytes=slot or None, reason=reason
    )


def kv_bytes(model: Model, width: int) -> tuple[int | None, str | None]:
    """Return the bytes of one token's keys and values in all layers, or None and why not."""
    layers = model.value("num_hidden_layers", "n_layer")
    if layers is None:
        return None, "config.json does not say how many layers there are"
    if model.value("kv_lora_rank"):
        latent = int(model.value("kv_lora_rank")) + int(model.value("qk_rope_head_dim") or 0)
        return int(layers) * latent * width, None
    heads = model.value("num_key_value_heads", "num_attention_heads", "n_head")
    head = head_width(model)
    if heads is None or head is None:
        return None, "config.json does not say how wide keys and values are"
    return 2 * int(layers) * int(heads) * head * width, None


def kv_shares(model: Model, gpus: int) -> int:
    """Return over how many GPUs the keys and values of a token are shared out: by key-value heads, and not
    at all with latent attention, where each GPU holds the whole latent.
    """
    heads = model.value("num_key_value_heads", "num_attention_heads", "n_head")
    return 1 if model.value("kv_lora_rank") or heads is None else min(gpus, int(heads))


def _adapted(model: Model, adapters: Sequence[Adapter]) -> list[tuple[int, ...]]:
    """(out, in) of every layer that any of the adapters may change, in all its layers."""
    targets = {target for adapter in adapters for target in adapter.targets}
    return [
        shape
        for module, shape in model.modules.items()
        if module.rpartition(".")[2] in targets and len(shape) == 2
    ]


def _slot(shape: tuple[int, ...], rank: int) -> int:
    """Elements of A (rank, in) and B (out, rank)."""
    return rank * (shape[0] + shape[1])
