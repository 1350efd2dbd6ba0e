"""The values that the quantized layers of a base held in training, layer by layer, as checksums.

Quantizing again gives the same values only where every step rounds alike. The mean of double quantization's
scales is a sum whose order depends on the device: training keeps it, with a checksum of what came out, so
that a merge elsewhere takes the same mean, and can tell of every layer whether it holds training's values.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from lora_eval.models.dense import dequantized_nf4, nf4_layers
from lora_eval.models.lineage import trained_quantization
from lora_eval.records import TrainedBase, TrainedLayer
from lora_eval.schema import read_record

TRAINED_BASE = "trained_base.json"
_WORD = 8  # bytes
_AT_ONCE = 1 << 18  # words: 2 MB of a device's memory
_MODULUS = 1 << 64


class Checksum:
    """Of a tensor's bits as little-endian 64-bit words w, the last one filled up with zeros: the sums of w
    and of (2 * index + 1) * w, modulo 2^64. Exact on every device, and pieces may come in any order.
    """

    def __init__(self) -> None:
        self._sums: dict[int, tuple[int, int]] = {}

    def add(self, piece: Any, first: int = 0) -> None:
        """Take the elements from `first` on, once however often they come; they begin a word."""
        start, rest = divmod(first * piece.element_size(), _WORD)
        if rest:
            raise ValueError(f"element {first} does not begin a word of {_WORD} bytes")
        total, weighted = _word_sums(piece)
        self._sums[first] = total, weighted + 2 * start * total

    def __str__(self) -> str:
        total, weighted = (sum(sums) % _MODULUS for sums in zip(*self._sums.values(), strict=True))
        return f"{total:016x}{weighted:016x}"


def observe(model: Any) -> TrainedBase | None:
    """Return what the model's 4-bit layers hold, computed where they are; None where it has none."""
    modules = nf4_layers(model)
    if not modules:
        return None
    first = next(iter(modules.values()))
    return TrainedBase(
        device=_device_name(first.weight.device),
        dtype=str(dequantized_nf4(first).dtype).removeprefix("torch."),
        layers={name: _observe_layer(module) for name, module in modules.items()},
    )


def seen_in_training(adapter: Path, quantization: dict[str, Any] | None) -> TrainedBase | None:
    """Return the adapter's `trained_base.json` where its training had that quantization; None where it had
    another, or kept nothing (RecordError where the file is faulty).
    """
    path = adapter / TRAINED_BASE
    if not quantization or not path.is_file() or trained_quantization(adapter) != quantization:
        return None
    return read_record(path, TrainedBase)


def _observe_layer(module: Any) -> TrainedLayer:
    state = module.weight.quant_state
    found = Checksum()
    found.add(dequantized_nf4(module))
    return TrainedLayer(checksum=str(found), offset=float(state.offset) if state.nested else None)


def _device_name(device: Any) -> str:
    import torch

    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else str(device.type)


def _word_sums(piece: Any) -> tuple[int, int]:
    import torch

    flat = piece.contiguous().view(-1).view(torch.uint8)
    missing = -len(flat) % _WORD
    if missing:
        flat = torch.cat([flat, flat.new_zeros(missing)])
    total = weighted = 0
    for number, words in enumerate(flat.view(torch.int64).split(_AT_ONCE)):
        found = int(words.sum())
        total += found
        weighted += int((words * _odd(words.device)[: len(words)]).sum()) + 2 * number * _AT_ONCE * found
    return total, weighted


@lru_cache(maxsize=1)
def _odd(device: Any) -> Any:
    import torch

    return torch.arange(1, 2 * _AT_ONCE, 2, device=device)
