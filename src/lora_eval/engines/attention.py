"""Attention over a pack of the token tree, and over rows that share a prefix: each token reads the keys it
can see and few others.

Registered with transformers under `NAME`; what is read is in the plan that `use` puts in force. A model whose
attention needs more than keys, values, a scale and a window (soft-capping, sinks) raises here, and is then
evaluated with masks through its own attention.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AttentionInterface

from lora_eval.engines import architecture, products
from lora_eval.engines.cache import KeyValue, PathCache
from lora_eval.engines.tree import Ints, subtree_ends

NAME = "lora_eval"
# Query rows that are computed together: the fewer, the fewer columns are wasted on what they cannot see; a
# product of a hundred rows still runs at nearly full rate.
_ROWS = {"cpu": 128, "cuda": 1024}
_STRIP = 512  # columns that torch's kernel for CPUs takes at a time (2.13)
_MORE = {"position_bias", "softcap", "s_aux"}


class Plan(Protocol):
    """What a forward pass attends to."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        window: int | None = None,
    ) -> torch.Tensor:
        """Return the attention's output (B, T, heads, width); with a window, a token sees itself and the
        `window - 1` tokens before it.
        """


class TreePlan:
    """Attention of one pack: block by block of its rows, over the part of the path and of the pack that the
    block can see.
    """

    def __init__(self, depths: Ints, cache: PathCache, device: torch.device) -> None:
        self._cache = cache
        self._device = device
        self._depths = depths
        self._attach = np.minimum.accumulate(depths)  # how much of the path each token sees
        self._ends = subtree_ends(depths)
        rows = _ROWS.get(device.type, _ROWS["cuda"])
        self._blocks = list(_blocks(depths, rows))
        # What stands in the pack before a block and is seen from it: the ancestors of its first row.
        self._before = [np.flatnonzero(self._ends[:first] > first) for first, _ in self._blocks]
        self._columns = [
            _columns(before, first, last, device)
            for before, (first, last) in zip(self._before, self._blocks, strict=True)
        ]
        self._masks: dict[int | None, list[torch.Tensor | None]] = {}

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        window: int | None = None,
    ) -> torch.Tensor:
        """Query (1, heads, N, width); key and value (1, kv heads, N, width) are the pack's own."""
        _, heads, rows, width = query.shape
        kv_heads = key.shape[1]
        group = heads // kv_heads
        if window not in self._masks:
            blocks = range(len(self._blocks))
            self._masks[window] = [self._mask(number, group, query.dtype, window) for number in blocks]
        output = query.new_empty(1, rows, heads, value.shape[-1])
        for number, mask in enumerate(self._masks[window]):
            first, last = self._blocks[number]
            keys, values = self._seen(layer, number, key, value, window)
            # The heads that share keys stand as more rows of one head: the keys need not be repeated.
            grouped = query[:, :, first:last].reshape(1, kv_heads, group * (last - first), width)
            found = products.attend(grouped, keys, values, mask, scale)
            output[:, first:last] = found.view(1, heads, last - first, -1).transpose(1, 2)
        return output

    def _seen(
        self, layer: int, number: int, key: torch.Tensor, value: torch.Tensor, window: int | None
    ) -> KeyValue:
        """Keys and values that some row of a block sees, by position: of the path, of the pack before the
        block, and the block's own.
        """
        low, high = self._on_path(*self._blocks[number], window)
        keys, values = key[:, :, self._columns[number]], value[:, :, self._columns[number]]
        path = self._cache.path.get(layer)
        if path is None or low >= high:
            return keys, values
        return (
            torch.cat((path[0][:, :, low:high], keys), dim=2),
            torch.cat((path[1][:, :, low:high], values), dim=2),
        )

    def _on_path(self, first: int, last: int, window: int | None) -> tuple[int, int]:
        """Return which part of the path some of rows `first` to `last` see."""
        low = 0 if window is None else max(0, int(self._depths[first:last].min()) - window + 1)
        return low, max(low, int(self._attach[first]))

    def _mask(self, number: int, group: int, dtype: torch.dtype, window: int | None) -> torch.Tensor | None:
        """Which of the columns of `_seen` each row of a block sees, as 0 or -inf; None where all see all."""
        first, last = self._blocks[number]
        rows = np.arange(first, last)[:, None]
        columns = np.concatenate((self._before[number], np.arange(first, last)))
        places = np.arange(*self._on_path(first, last, window))[None, :]
        on_path = places < self._attach[first:last, None]
        in_pack = (columns <= rows) & (rows < self._ends[None, columns])
        seen = np.concatenate((on_path, in_pack), axis=1)
        if window is not None:
            depths = np.concatenate((places, self._depths[None, columns]), axis=1)
            seen &= self._depths[first:last, None] - depths < window
        visible = torch.from_numpy(seen)
        if bool(visible.all()):
            return None
        mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, float("-inf"))
        return mask.repeat(group, 1).to(self._device)


def _columns(before: Ints, first: int, last: int, device: torch.device) -> slice | torch.Tensor:
    """Where a block's columns stand in the pack: a slice, which copies nothing, if they stand together."""
    start = first - len(before)
    if len(before) == 0 or int(before[0]) == start:
        return slice(start, last)
    return torch.from_numpy(np.concatenate((before, np.arange(first, last)))).to(device)


def _blocks(depths: Ints, rows: int) -> Iterator[tuple[int, int]]:
    """Yield (first row, row after the last) of at most `rows` rows each.

    A fused kernel takes `_STRIP` columns at a time and rounds between them, which 16 bits show: a block also
    ends before a branch whose tokens would stand in another strip than in a sequence of their own.
    """
    first = branch = 0
    before = -1
    for row, depth in enumerate(depths.tolist()):
        if depth <= before:
            branch = row
        before = depth
        column = int(depths[first]) + row - first
        if row - first == rows or (column // _STRIP != depth // _STRIP and branch > first):
            cut = row if row - first == rows else branch
            yield first, cut
            first = cut
    if first < len(depths):
        yield first, len(depths)


_current: list[Plan] = []


@contextlib.contextmanager
def use(plan: Plan) -> Iterator[None]:
    """Within this, attention under `NAME` is the plan's."""
    _current.append(plan)
    try:
        yield
    finally:
        _current.pop()


def no_mask(device: torch.device) -> torch.Tensor:
    """Return what stands for a mask: it has four dimensions, so transformers passes it on as it is, and
    nothing reads it.
    """
    return torch.zeros(1, 1, 1, 1, device=device)


@contextlib.contextmanager
def installed(model: Any) -> Iterator[None]:
    """Within this, the model's layers attend through `NAME`.

    Raises:
        NotImplementedError: some of them see neither the whole path nor a window of it.
    """
    architecture.layer_kinds(model)
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as the plan in force says; the signature is transformers'.

    Raises:
        NotImplementedError: the layer asks for more than keys, values, a scale and a window, or nothing says
            what is to be seen.
    """
    asked = sorted(name for name in _MORE if options.get(name) is not None)
    if asked or dropout or getattr(module, "is_causal", True) is False:
        raise NotImplementedError(f"attention with {', '.join(asked) or 'dropout or no order'}")
    if not _current:
        raise NotImplementedError("attention with no plan in force: forward packs or slots within `use`")
    window = options.get("sliding_window")
    return _current[-1].attend(module.layer_idx, query, key, value, scaling, window), None


AttentionInterface.register(NAME, attention)
