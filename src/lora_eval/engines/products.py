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
from torch.nn.functional import scaled_dot_product_attention

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


def batched(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return a @ b.transpose(1, 2) for a (heads, R, K) and b (heads, C, K)."""
    if not _gains(a, a[0].numel() * b.shape[1], _LEAST):
        return a @ b.transpose(1, 2)
    return torch.stack([linear(x, y.contiguous()) for x, y in zip(a, b, strict=True)])


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


@contextlib.contextmanager
def installed(model: Any) -> Iterator[None]:
    """Within this, the model's float32 linear layers on a CPU compute through `linear`."""
    layers = [
        module
        for module in model.modules()
        if _AVAILABLE
        and type(module) is torch.nn.Linear
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
        and module.weight.is_contiguous()
    ]
    for module in layers:
        module.forward = partial(_forward, module)
    try:
        yield
    finally:
        for module in layers:
            del module.forward


def _forward(module: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return linear(x, module.weight, module.bias)
