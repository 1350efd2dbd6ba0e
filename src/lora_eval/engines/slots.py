"""Keys and values of the rows that are being decoded, one slot each, behind a prefix that all rows share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from lora_eval.engines import products
from lora_eval.engines.cache import KeyValue

# From so many keys on, keys times queries is the faster order of the product (125 keys: 185 us for 287).
_MANY = 100


class Slots(DynamicCache):  # type: ignore[misc]
    """`rows` slots of `length` tokens each; the first `used` of them are in use, with `lengths` tokens.

    `prefix` (1, heads, P, width) stands before every row. With `joined` the model's own attention gets the
    slots from `update`; without, ours reads them through `attend`.
    """

    def __init__(self, rows: int, length: int, prefix: Mapping[int, KeyValue], *, joined: bool) -> None:
        super().__init__()
        self.rows, self.length = rows, length
        self.lengths: list[int] = []
        self._prefix = dict(prefix)
        self._joined = joined
        self._buffers: dict[int, KeyValue] = {}
        self._turned: dict[int, torch.Tensor] = {}

    @property
    def used(self) -> int:
        """How many slots are in use."""
        return len(self.lengths)

    def put(self, row: Mapping[int, KeyValue]) -> None:
        """Take the next slot for a row's keys and values (1, heads, n, width), n may be 0."""
        size = 0
        for layer, pair in row.items():
            size = pair[0].shape[2]
            buffers = self._buffer(layer, pair)
            for buffer, new in zip(buffers, pair, strict=True):
                buffer[self.used, :, :size] = new[0]
        self.lengths.append(size)

    def drop(self, slot: int) -> None:
        """Free a slot; the last one in use moves there."""
        last = self.used - 1
        if slot != last:
            for buffers in self._buffers.values():
                for buffer in buffers:
                    buffer[slot, :, : self.lengths[last]] = buffer[last, :, : self.lengths[last]]
            self.lengths[slot] = self.lengths[last]
        self.lengths.pop()

    def begin_step(self, device: torch.device) -> None:
        """Make ready for one more token of each row."""
        lengths = torch.tensor(self.lengths)
        self._where = (torch.arange(self.used, device=device), lengths.to(device))
        self._width = int(lengths.max()) + 1
        self._device = device
        self._biases: dict[tuple[int, int, int | None], torch.Tensor] = {}

    def end_step(self) -> None:
        """Count the token that each row has got."""
        self.lengths = [length + 1 for length in self.lengths]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> KeyValue:
        """Store the new token's key and value (rows, heads, 1, width) of a layer."""
        buffers = self._buffer(layer_idx, (key_states, value_states))
        for buffer, new in zip(buffers, (key_states, value_states), strict=True):
            buffer[self._where[0], :, self._where[1]] = new[:, :, 0]
        if not self._joined:
            return key_states, value_states
        keys, values = (buffer[: self.used, :, : self._width] for buffer in buffers)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the length of the longest row."""
        return max(self.lengths, default=0)

    def visible(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return which of its keys each row sees in this step, and how far they are; (rows, 1, 1, width)."""
        distance = np.array(self.lengths)[:, None] - np.arange(self._width)[None]
        return (distance >= 0)[:, None, None], distance[:, None, None]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        window: int | None = None,
    ) -> torch.Tensor:
        """Return the output (rows, 1, heads, width) for queries (rows, heads, 1, width).

        The prefix is read once for all rows, as one matrix product for each head; the softmax is exact over
        prefix and row together.
        """
        rows, heads, _, width = query.shape
        keys, values = (buffer[:rows, :, : self._width] for buffer in self._buffers[layer])
        kv_heads = keys.shape[1]
        grouped = (query.float() * (width**-0.5 if scale is None else scale)).view(
            rows, kv_heads, heads // kv_heads, width
        )
        own = _products(grouped, keys)  # (rows, kv heads, group, L)
        if layer not in self._prefix:
            own += self._bias(0, own.shape[-1], window)
            weights = torch.softmax(own, dim=-1).to(query.dtype)
            return (weights @ values).reshape(rows, 1, heads, -1)
        prefix_keys, prefix_values = (part[0] for part in self._prefix[layer])  # (kv heads, P, width)
        length = prefix_keys.shape[1]
        # Heads first, and both parts in one place: a copy of so many scores costs as much as their softmax.
        scores = own.new_empty(kv_heads, rows, heads // kv_heads, length + own.shape[-1])
        before, after = scores[..., :length], scores[..., length:]
        together = grouped.transpose(0, 1).reshape(kv_heads, -1, width)  # (kv heads, rows * group, width)
        products.batched(together, prefix_keys.float(), out=before.view(kv_heads, -1, length))
        if window is not None:
            before += self._bias(length, length, window).transpose(0, 1)
        torch.add(own.transpose(0, 1), self._bias(0, own.shape[-1], window).transpose(0, 1), out=after)
        weights = torch.softmax(scores, dim=-1).to(query.dtype)
        shared = weights[..., :length].view(kv_heads, -1, length)
        of_prefix = products.batched(shared, self._columns(layer, prefix_values))
        of_prefix = of_prefix.view(kv_heads, rows, -1, values.shape[-1]).transpose(0, 1)
        return (weights[..., length:].transpose(0, 1) @ values + of_prefix).reshape(rows, 1, heads, -1)

    def _columns(self, layer: int, values: torch.Tensor) -> torch.Tensor:
        """The prefix's values as (kv heads, width, P), turned once."""
        if layer not in self._turned:
            self._turned[layer] = values.transpose(1, 2).contiguous()
        return self._turned[layer]

    def _bias(self, before: int, width: int, window: int | None) -> torch.Tensor:
        """0 where a row may see a key, else -inf: (rows, 1, 1, width). The first key stands `before` places
        before the rows' own first ones.
        """
        kind = (before, width, window)
        if kind not in self._biases:
            lengths = torch.tensor(self.lengths)[:, None]
            distance = lengths + before - torch.arange(width)[None]  # (rows, keys)
            hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
            bias = torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
            self._biases[kind] = bias.to(self._device)[:, None, None]
        return self._biases[kind]

    def _buffer(self, layer: int, like: KeyValue) -> KeyValue:
        if layer not in self._buffers:
            keys, values = (
                part.new_zeros(self.rows, part.shape[1], self.length, part.shape[3]) for part in like
            )
            self._buffers[layer] = (keys, values)
        return self._buffers[layer]


def _products(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Return the products (..., queries, keys) of float32 queries in float32, as fused kernels keep them: in
    bfloat16 a score of 50 is rounded by up to 0.125, which is an eighth of a weight.
    """
    keys = keys.float()
    if keys.shape[-2] < _MANY:
        return query @ keys.transpose(-1, -2)
    return (keys @ query.transpose(-1, -2)).transpose(-1, -2)
