"""Keys and values of the path that a pack continues, behind transformers' own cache interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

KeyValue = tuple[torch.Tensor, torch.Tensor]
Range = tuple[int, int]


class PathCache(DynamicCache):  # type: ignore[misc]
    """One path of the token tree, and after a forward pass the tokens of the pack behind it.

    With `joined` the model's own attention gets both together (1, heads, P + N, width); without, it gets
    the new ones only, and ours takes the path from `path`. Sliding layers keep everything: masks decide
    what is seen.
    """

    def __init__(self, *, joined: bool) -> None:
        super().__init__()
        self.path: dict[int, KeyValue] = {}
        self._fresh: dict[int, KeyValue] = {}
        self._joined = joined

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> KeyValue:
        """Keep the new keys and values (1, heads, N, width) of a layer; returns what attention reads."""
        self._fresh[layer_idx] = (key_states, value_states)
        return self._all(layer_idx) if self._joined else (key_states, value_states)

    @property
    def filled(self) -> bool:
        """True where a forward pass has left keys and values here."""
        return bool(self._fresh)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the length of the path."""
        return int(self.path[layer_idx][0].shape[2]) if layer_idx in self.path else 0

    def keep(self, ranges: Sequence[Range]) -> None:
        """From now on the path is what stood at these places (path first, then the pack's tokens)."""
        if not ranges:
            self.path = {}
        elif len(ranges) > 1 or ranges[0] != (0, self.get_seq_length()):
            self.path = {layer: self._select(layer, ranges) for layer in self._fresh or self.path}
        self._fresh = {}

    def read(self, ranges: Sequence[Range]) -> dict[int, KeyValue]:
        """Return a copy of the keys and values at these places, layer by layer."""
        return {layer: self._select(layer, ranges) for layer in self._fresh}

    def _all(self, layer: int) -> KeyValue:
        if layer not in self.path:
            return self._fresh[layer]
        (keys, values), (new_keys, new_values) = self.path[layer], self._fresh[layer]
        return torch.cat((keys, new_keys), dim=2), torch.cat((values, new_values), dim=2)

    def _select(self, layer: int, ranges: Sequence[Range]) -> KeyValue:
        """Copy the places: a view would keep the whole pack in memory."""
        path = self.get_seq_length(layer)
        keys: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        for start, stop in ranges:
            if start < path:
                self._slice(self.path[layer], start, min(stop, path), keys, values)
            if stop > path:
                self._slice(self._fresh[layer], max(start - path, 0), stop - path, keys, values)
        return torch.cat(keys, dim=2), torch.cat(values, dim=2)

    @staticmethod
    def _slice(
        pair: KeyValue, start: int, stop: int, keys: list[torch.Tensor], values: list[torch.Tensor]
    ) -> None:
        keys.append(pair[0][:, :, start:stop])
        values.append(pair[1][:, :, start:stop])
