"""Float32 matrix products on a CPU through oneDNN.

torch sends them to MKL, which on AMD processors stays with 256-bit instructions: 107 GFLOP/s on one core of a
Zen 5, where oneDNN (in every torch build) reaches 240 with the same weights and no copy of them. Sums are in
another order: the usual float32 rounding. On other devices and dtypes, and for products that are too small to
gain, torch's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.nn.functional import linear as torch_linear
from torch.nn.functional import pad, scaled_dot_product_attention

from lora_eval.models.deltas import AdaptedLayer, adapted_layer

_LEAST = 1 << 20  # multiplications; a smaller product loses more to the call than it gains
# For attention more: every shape is compiled once and kept, and short contexts have many.
_LEAST_ATTENTION = 1 << 23


_AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _gains(a: torch.Tensor, multiplications: int, least: int) -> bool:
    return _AVAILABLE and a.dtype == torch.float32 and a.device.type == "cpu" and multiplications >= least


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return x @ weight.T + bias for x (..., K) and weight (N, K)."""
    if not _gains(x, x.numel() * weight.shape[0], _LEAST):
        return torch_linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def batched(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Return a @ b.transpose(1, 2) for a (heads, R, K) and b (heads, C, K), written to `out` if given."""
    out = a.new_empty(*a.shape[:2], b.shape[1]) if out is None else out
    if not _gains(a, a[0].numel() * b.shape[1], _LEAST):
        return out.copy_(a @ b.transpose(1, 2))
    for head, (x, y) in enumerate(zip(a, b, strict=True)):
        out[head] = linear(x.contiguous(), y.contiguous())
    return out


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
) -> torch.Tensor:
    """Return the attention of queries (1, heads, R, width) over keys and values (1, heads, C, width), with an
    additive mask (R, C), as (1, heads, R, value width). One head at a time: its scores stay in the cache.
    """
    rows, columns, width = query.shape[2], key.shape[2], query.shape[3]
    if query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float16):
        key, value, mask = _whole_lanes(key, value, mask, query)
    if not _gains(query, rows * columns * width, _LEAST_ATTENTION):
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    query = query * (width**-0.5 if scale is None else scale)
    output = query.new_empty(*query.shape[:3], value.shape[3])
    for head in range(query.shape[1]):
        scores = linear(query[0, head], key[0, head].contiguous())
        if mask is not None:
            scores += mask
        output[0, head] = linear(torch.softmax(scores, dim=-1), value[0, head].t().contiguous())
    return output


class Packed:
    """Weights in the order in which oneDNN reads them, made as they are first needed, `limit` bytes in all.

    A few rows against a weight are bound by reading it: 32 rows run at 166 GFLOP/s instead of 122, 8 rows at
    86 instead of 49. Without a delta results are equal in every bit; with one, the copy holds the sum of
    both, which is the same up to float32 rounding and makes LoRA cost nothing.
    """

    ROWS = 128  # from here on a packed weight gains less than a tenth

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._weights: dict[int, torch.Tensor] = {}

    def linear(self, x: torch.Tensor, layer: AdaptedLayer) -> torch.Tensor | None:
        """Return what the layer gives for x (..., K); None where a packed weight would not gain or fit."""
        weight = layer.base.weight
        rows = x.numel() // weight.shape[1]
        if rows > self.ROWS or not _gains(x, rows * weight.numel(), _LEAST):
            return None
        if id(layer.base) not in self._weights:
            if weight.nbytes > self._left:
                return None
            self._left -= weight.nbytes
            if layer.a is not None:
                weight = torch.addmm(weight, layer.b, layer.a, alpha=layer.scaling)
            self._weights[id(layer.base)] = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        packed = self._weights[id(layer.base)]
        return torch.ops.mkldnn._linear_pointwise(x, packed, layer.base.bias, "none", [], "")


def _whole_lanes(
    key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, query: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Keys and values up to a multiple of 16 columns, hidden by the mask.

    torch's fused kernel (2.13) takes another exponential for the columns that do not fill a vector, and 16
    bits show it: stories260K in bfloat16 was 0.23 nats from lm-eval's log-likelihoods on average, with this
    0.055 (lm-eval at batch size 64: 0.051).
    """
    missing = -key.shape[2] % 16
    if not missing:
        return key, value, mask
    if mask is None:
        mask = query.new_zeros(query.shape[2], key.shape[2])
    key, value = (pad(part, (0, 0, 0, missing)) for part in (key, value))
    return key, value, pad(mask, (0, missing), value=float("-inf"))


@contextlib.contextmanager
def installed(model: Any, packed_bytes: int = 0) -> Iterator[None]:
    """Within this, the model's float32 linear layers on a CPU compute through oneDNN, plain LoRA in one pass
    over the base's output or within its weight. At most `packed_bytes` go to copies of weights for products
    of few rows.
    """
    changed = []
    packs = Packed(packed_bytes)
    if _AVAILABLE:
        for module in model.modules():
            forward = _forward_of(module, packs)
            if forward is not None:
                module.forward = forward
                changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _forward_of(module: Any, packs: Packed) -> Any:
    """What takes the place of a layer's forward pass; None where it stays."""
    layer = AdaptedLayer(module) if _is_plain(module) else adapted_layer(module)
    if layer is None or not _is_plain(layer.base):
        return None
    if layer.a is not None and not layer.a.dtype == layer.b.dtype == torch.float32:
        return None
    return partial(_forward, packs, layer)


def _is_plain(module: Any) -> bool:
    return (
        type(module) is torch.nn.Linear
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
        and module.weight.is_contiguous()
    )


def _forward(packs: Packed, layer: AdaptedLayer, x: torch.Tensor) -> torch.Tensor:
    """The base's output, and the delta added to it in place: PEFT makes three more tensors of its size."""
    output = packs.linear(x, layer)
    if output is not None:
        return output
    output = linear(x, layer.base.weight, layer.base.bias)
    if layer.a is not None:
        narrow = linear(x, layer.a)
        output.view(-1, output.shape[-1]).addmm_(
            narrow.reshape(-1, narrow.shape[-1]), layer.b.t(), alpha=layer.scaling
        )
    return output
