"""The values that training saw: bitsandbytes' 4-bit quantization of a weight, and back, piece by piece.

A GPU's layers hold other values than a CPU's (bitsandbytes 0.50.2): other codes for 0.1 % of the scales
(`scales`), FP4 borders that differ by up to 6e-7, and -1 times the scale where a whole block is 0 under NF4.
Training says which it was (`trained_base.json`); without that it is what this machine would train on. For
NF4 of bfloat16 weights the codes are the same on both: no quotient of two of them lies nearer to a border
than 19 * 2^-24 of it, and an approximate reciprocal is off by less than 4 * 2^-24.

bitsandbytes finds the code of each value by a binary search (`torch.bucketize`: 28 ns for each value on one
core of an AMD EPYC). Counting how many of the 15 borders lie below a value gives the same code in a fifth of
that, since comparisons are vectorised. On a CPU borders, codes and the double quantization of the scales
are bitsandbytes' own, and so is the arithmetic: the result is equal in every bit.

Its C code for dequantizing is not called, for two reasons. On AVX512 it takes the scales of wrong blocks
where a row of a multiple of 16 does not end with a block (0.50.2; measured for 32, 48, 80, 96, 160, 176 and
224 columns: errors 4 times those of NF4). And it starts threads of its own under every thread that calls it.
"""

from __future__ import annotations

from functools import partial
from math import gcd
from typing import Any

from lora_eval.errors import ModelError
from lora_eval.exporters.pieces import InOrder, one_by_one, row_ranges, scratch
from lora_eval.exporters.scales import borders, cpu_scales, gpu_scales
from lora_eval.models.trained_base import Checksum
from lora_eval.records import TrainedBase, TrainedLayer

_BLOCK = 64  # Params4bit's own on CPUs and NVIDIA; not an option of BitsAndBytesConfig


class RoundTrip:
    """Quantizes and dequantizes as `Linear4bit` does with these `BitsAndBytesConfig` arguments.

    The result is in the compute dtype: bitsandbytes 0.50.2 dequantizes straight into the dtype of the
    layer's input (`gemm_4bit` in `backends/default/ops.py`), so these are the values that were multiplied.
    """

    def __init__(self, quantization: dict[str, Any], seen: TrainedBase | None = None) -> None:
        import torch
        from transformers import BitsAndBytesConfig

        try:
            config = BitsAndBytesConfig(**quantization)
        except (TypeError, ValueError) as error:
            raise ModelError(f"the lineage's quantization is no BitsAndBytesConfig: {error}") from error
        if not config.load_in_4bit:
            raise ModelError(
                "the base was quantized to 8 bit in training; its forward pass takes outlier columns out by "
                "input, so there are no fixed weights to merge into; use --onto original and verify the cost"
            )
        self.config = config
        self.seen = seen.layers if seen else {}
        self.on_gpu = seen.device != "cpu" if seen else torch.cuda.is_available()
        self.bounds, values = borders(config.bnb_4bit_quant_type, gpu=self.on_gpu)
        # Two neighbours at once: rank + 256 * the next one's, to both values as the 64 bits of one number.
        pairs = torch.stack([values.repeat(16), values.repeat_interleave(16)], dim=1).view(torch.int64)
        self._pairs = torch.zeros(16, 256, dtype=torch.int64)
        self._pairs[:, :16] = pairs.view(16, 16)
        self._pairs = self._pairs.view(-1)

    def __call__(self, weight: Any) -> Any:
        """Return the whole weight (out, in) as the quantized layer used it."""
        return self.prepare(weight).rows(0, len(weight)).clone()

    def prepare(self, weight: Any, in_order: InOrder = one_by_one, module: str = "") -> Quantized:
        """Return a weight (out, in) with its scales, ready to give rows; `module` is the layer's path."""
        return Quantized(self, weight, in_order, self.seen.get(module))

    def values(self, scaled: Any) -> Any:
        """Return the code's value (float32) for each number in [-1, 1], in scratch memory.

        As in `torch.bucketize`, a number on a border belongs to the lower code.
        """
        import torch

        size = scaled.numel()
        rank = scratch("rank", (size,), torch.uint8).zero_()
        above = scratch("above", (size,), torch.bool)
        for bound in self.bounds:
            torch.gt(scaled, bound, out=above)
            rank.add_(above.view(torch.uint8))
        pairs = scratch("pairs", (size // 2,), torch.int32).copy_(rank.view(torch.int16))
        found = scratch("found", (size // 2,), torch.int64)
        return torch.index_select(self._pairs, 0, pairs, out=found).view(torch.float32)


class Quantized:
    """One weight in the eyes of the quantized layer; `step` is the least number of rows that ends a block,
    `checksum` that of all rows which were given.
    """

    def __init__(self, trip: RoundTrip, weight: Any, in_order: InOrder, seen: TrainedLayer | None) -> None:
        import torch

        self._trip = trip
        self._weight = weight
        self.checksum = Checksum()
        self.step = _BLOCK // gcd(_BLOCK, weight.shape[-1])
        flat = weight.reshape(-1)
        ranges = row_ranges(-(len(flat) // -_BLOCK), _BLOCK)
        self._largest = torch.cat(list(in_order(partial(_absmax, flat), ranges)))
        self._scale = self._largest
        if trip.config.bnb_4bit_use_double_quant:
            self._take_scales(seen, in_order)

    def _take_scales(self, seen: TrainedLayer | None, in_order: InOrder) -> None:
        """Where a reciprocal's last place decides, only training's checksum can tell which scales it had."""
        offset = seen.offset if seen else None
        if not self._trip.on_gpu:
            self._scale = cpu_scales(self._largest, offset)
            return
        self._scale, *others = gpu_scales(self._largest, offset, in_order)
        if seen is None or not others:
            return
        first, ranges = self._scale, row_ranges(len(self._weight), self._weight.shape[1], self.step)
        for self._scale in (first, *others):
            self.checksum = Checksum()
            for _ in in_order(self.rows, ranges):
                pass
            if str(self.checksum) == seen.checksum:
                break
        else:
            self._scale = first
        self.checksum = Checksum()

    def rows(self, start: int, end: int) -> Any:
        """Return the rows in the compute dtype; `start` and `end` are multiples of `step`, or the last row.

        They lie in scratch memory of this thread: the next call writes over them.
        """
        piece = self._weight[start:end]
        width = piece.shape[-1]
        blocks = slice(start * width // _BLOCK, -(end * width // -_BLOCK))
        largest = self._largest[blocks].view(-1, 1)
        if not (self._trip.on_gpu and self._trip.config.bnb_4bit_quant_type == "nf4"):
            # Else 0 times an infinite reciprocal, which is no number and has the lowest code.
            largest = largest.clamp(min=1e-38)
        scaled = scratch("scaled", (len(largest) * _BLOCK,))
        scaled[piece.numel() :] = 0  # the weight's last block may not be full
        scaled[: piece.numel()] = piece.reshape(-1)
        if piece.numel() == len(scaled) or self._trip.on_gpu:
            scaled.view(-1, _BLOCK).mul_(1.0 / largest)
        else:
            full = piece.numel() // _BLOCK
            scaled[: full * _BLOCK].view(-1, _BLOCK).mul_(1.0 / largest[:full])
            scaled[full * _BLOCK :].div_(largest[full])
        found = self._trip.values(scaled.clamp_(-1, 1)).view(-1, _BLOCK)
        found.mul_(self._scale[blocks].view(-1, 1))
        dtype = self._trip.config.bnb_4bit_compute_dtype
        used = scratch(f"used {dtype}", found.shape, dtype).copy_(found)
        used = used.view(-1)[: piece.numel()]
        self.checksum.add(used, start * width)
        return used.view(piece.shape)


def _absmax(flat: Any, first: int, end: int) -> Any:
    """Return the largest magnitude of each block, in float32; the last block may not be full."""
    import torch

    piece = flat[first * _BLOCK : end * _BLOCK]
    full = len(piece) // _BLOCK * _BLOCK
    wide = scratch("wide", (full,)).copy_(piece[:full]).abs_().view(-1, _BLOCK)
    found = wide.amax(dim=1)
    return found if full == len(piece) else torch.cat([found, piece[full:].float().abs().max().view(1)])
