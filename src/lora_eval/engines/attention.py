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
from lora_eval.engines.cache import PathCache
from lora_eval.engines.tree import Ints, subtree_ends

NAME = "lora_eval"
# Query rows that are computed together: the fewer, the fewer columns are wasted on what they cannot see; a
# product of a hundred rows still runs at nearly full rate.
_ROWS = {"cpu": 128, "cuda": 1024}
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
        self._blocks = list(_blocks(depths, self._attach, _ROWS.get(device.type, _ROWS["cuda"])))
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
            self._masks[window] = [self._mask(*block, group, query.dtype, window) for block in self._blocks]
        output = query.new_empty(1, rows, heads, value.shape[-1])
        path = self._cache.path.get(layer)
        for (first, last, origin), mask in zip(self._blocks, self._masks[window], strict=True):
            keys, values = key[:, :, origin:last], value[:, :, origin:last]
            low, high = self._on_path(first, last, window)
            if low < high and path is not None:
                keys = torch.cat((path[0][:, :, low:high], keys), dim=2)
                values = torch.cat((path[1][:, :, low:high], values), dim=2)
            # The heads that share keys stand as more rows of one head: the keys need not be repeated.
            grouped = query[:, :, first:last].reshape(1, kv_heads, group * (last - first), width)
            found = products.attend(grouped, keys, values, mask, scale)
            output[:, first:last] = found.view(1, heads, last - first, -1).transpose(1, 2)
        return output

    def _on_path(self, first: int, last: int, window: int | None) -> tuple[int, int]:
        """Return which part of the path some of rows `first` to `last` see."""
        low = 0 if window is None else max(0, int(self._depths[first:last].min()) - window + 1)
        return low, max(low, int(self._attach[first]))

    def _mask(
        self, first: int, last: int, origin: int, group: int, dtype: torch.dtype, window: int | None
    ) -> torch.Tensor | None:
        """What rows `first` to `last` see of the path and of the pack from `origin` on, as 0 or -inf."""
        rows = np.arange(first, last)[:, None]
        columns = np.arange(origin, last)[None, :]
        places = np.arange(*self._on_path(first, last, window))[None, :]
        on_path = places < self._attach[first:last, None]
        in_pack = (columns <= rows) & (rows < self._ends[None, origin:last])
        seen = np.concatenate((on_path, in_pack), axis=1)
        if window is not None:
            depths = np.concatenate((places, self._depths[None, origin:last]), axis=1)
            seen &= self._depths[first:last, None] - depths < window
        visible = torch.from_numpy(seen)
        if bool(visible.all()):
            return None
        mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, float("-inf"))
        return mask.repeat(group, 1).to(self._device)


def _blocks(depths: Ints, attach: Ints, rows: int) -> Iterator[tuple[int, int, int]]:
    """Yield (first row, last row, first column in the pack) so that no row sees beyond its block's columns.

    Subtrees that begin in the pack are not cut unless they are longer than `rows`.
    """
    roots = np.flatnonzero(depths == attach).tolist()
    first = 0
    for root, after in zip(roots, [*roots[1:], len(depths)], strict=True):
        if root > first and after - first > rows:
            yield first, root, first
            first = root
        if after - root > rows:
            for start in range(root, after, rows):
                yield start, min(start + rows, after), root
            first = after
    if first < len(depths):
        yield first, len(depths), first


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
