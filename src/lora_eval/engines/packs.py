"""One pack of a token tree through a model: the tokens in one row, the path before them in the cache."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lora_eval.engines import architecture, attention
from lora_eval.engines.cache import KeyValue, PathCache
from lora_eval.engines.tree import Ints, Pack, Range, TokenTree, subtree_ends

_CHUNK = 1 << 22  # logits in float32 at a time: 16 MiB


class PackRunner:
    """Forwards the packs of one tree in order.

    `fused`: through our own attention; else the model's own with a mask that says which token sees which.

    Raises:
        ModelError: the tree holds a sequence beyond the model's `length_limit`.
    """

    def __init__(self, model: Any, tree: TokenTree, *, fused: bool) -> None:
        self._model = model
        self._tree = tree
        architecture.check_length(model, int(tree.depths.max(initial=-1)) + 1)
        self._fused = fused
        self._cache = PathCache(joined=not fused)
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def begin(self, prefix: Mapping[int, KeyValue]) -> None:
        """Start with the keys and values of what all sequences begin with."""
        self._cache.path = dict(prefix)

    def run(self, pack: Pack, rows: Ints) -> torch.Tensor:
        """Forward the next pack; returns the logits (K, V) of its tokens `rows`, counted within the pack.

        Raises:
            NotImplementedError: the model does not use the cache, or has layers that masks cannot express.
        """
        device = self._model.device
        self._cache.keep(pack.keep)
        depths = self._tree.depths[pack.start : pack.stop]
        inputs: dict[str, Any] = {
            "input_ids": torch.from_numpy(self._tree.tokens[pack.start : pack.stop]).to(device)[None],
            "position_ids": torch.from_numpy(depths).to(device)[None],
            "past_key_values": self._cache,
            "use_cache": True,
        }
        wanted = torch.from_numpy(rows).to(device)
        if self._keeps_logits:
            inputs["logits_to_keep"] = wanted
        with self._attention(depths, inputs):
            logits = self._model(**inputs).logits[0]
        if not self._cache.filled:
            raise NotImplementedError("the model keeps no keys and values in the cache that it is given")
        return logits if self._keeps_logits else logits[wanted]

    def read(self, places: Sequence[Range]) -> dict[int, KeyValue]:
        """Return a copy of what the cache holds at these places after the last pack."""
        return self._cache.read(places)

    @contextlib.contextmanager
    def _attention(self, depths: Ints, inputs: dict[str, Any]) -> Iterator[None]:
        if not self._fused:
            inputs["attention_mask"] = tree_masks(self._model, depths)
            yield
            return
        inputs["attention_mask"] = attention.no_mask(self._model.device)
        with attention.use(attention.TreePlan(depths, self._cache, self._model.device)):
            yield


def tree_masks(model: Any, depths: Ints) -> torch.Tensor | dict[str, torch.Tensor]:
    """Return the mask (1, 1, N, P + N) of a pack behind a path of P tokens, or one for each kind of layer."""
    prefix = int(depths[0])
    attach = np.minimum.accumulate(depths)
    places, columns = np.arange(len(depths)), np.concatenate((np.arange(prefix), depths))
    on_path = np.arange(prefix)[None, :] < attach[:, None]
    in_pack = (places[None, :] <= places[:, None]) & (places[:, None] < subtree_ends(depths)[None, :])
    seen = np.concatenate((on_path, in_pack), axis=1)
    return layer_masks(model, seen, depths[:, None] - columns[None, :])


def layer_masks(
    model: Any, seen: np.ndarray[Any, Any], distance: np.ndarray[Any, Any]
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Return what may be seen in the form that the model takes: boolean, or additive for eager attention; a
    window is cut by `distance` in positions. Both arrays have the shape (..., queries, keys).

    Raises:
        NotImplementedError: the model has layers of a kind that this cannot express.
    """
    kinds, width = architecture.layer_kinds(model), architecture.window(model)
    full = _as_mask(model, seen)
    if kinds == {"full_attention"} or width is None:
        return full
    sliding = _as_mask(model, seen & (distance < width))
    if architecture.by_kind(model):
        return {"full_attention": full, "sliding_attention": sliding}
    return sliding


def _as_mask(model: Any, seen: np.ndarray[Any, Any]) -> torch.Tensor:
    mask = torch.from_numpy(seen).to(model.device)
    mask = mask[None, None] if mask.dim() == 2 else mask
    if model.config._attn_implementation != "eager":
        return mask
    return torch.zeros(mask.shape, dtype=model.dtype, device=model.device).masked_fill_(
        ~mask, torch.finfo(model.dtype).min
    )


def log_probabilities(
    logits: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log p(target) in float32, and whether the target is the likeliest token, for each pair of a row
    of the logits (K, V) and a target.
    """
    chosen, greedy = [], []
    step = max(1, _CHUNK // logits.shape[-1])
    for start in range(0, len(logits), step):
        values = torch.log_softmax(logits[start : start + step].float(), dim=-1)
        inside = slice(*torch.searchsorted(rows, torch.tensor([start, start + step])).tolist())
        where, wanted = (rows[inside] - start).to(values.device), targets[inside].to(values.device)
        chosen.append(values[where, wanted])
        greedy.append(values.argmax(dim=-1)[where] == wanted)
    return torch.cat(chosen).cpu(), torch.cat(greedy).cpu()
