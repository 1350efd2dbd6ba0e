"""The values that training saw: bitsandbytes' 4-bit quantization of a weight, and back, piece by piece.

bitsandbytes finds the code of each value by a binary search (`torch.bucketize`, 28 ns for each value on one
core of an AMD EPYC, 0.5 ns to dequantize). Counting how many of the 15 borders lie below a value gives the
same code in a fifth of that, since comparisons are vectorised. Everything else is bitsandbytes' own: the
borders, the double quantization of the scales, the dequantization. The result is equal in every bit.
"""

from __future__ import annotations

from math import gcd
from typing import Any

from lora_eval.errors import ModelError

_BLOCK = 64  # Params4bit's own on CPUs and NVIDIA; not an option of BitsAndBytesConfig


class RoundTrip:
    """Quantizes and dequantizes as `Linear4bit` does with these `BitsAndBytesConfig` arguments.

    The result is in the compute dtype: bitsandbytes 0.50.2 dequantizes straight into the dtype of the
    layer's input (`gemm_4bit` in `backends/default/ops.py`), so these are the values that were multiplied.
    """

    def __init__(self, quantization: dict[str, Any]) -> None:
        import torch
        from bitsandbytes.backends.default import ops
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
        bounds, order = ops._get_4bit_quantize_bounds(config.bnb_4bit_quant_type, torch.device("cpu"))
        self._bounds = [float(bound) for bound in bounds]
        # FP4's codes do not lie in the order of their values: the code of each rank.
        self._order = order.to(torch.uint8) if config.bnb_4bit_quant_type != "nf4" else None

    def __call__(self, weight: Any) -> Any:
        """Return the whole weight (out, in) as the quantized layer used it."""
        return self.prepare(weight).rows(0, len(weight))

    def prepare(self, weight: Any) -> Quantized:
        """Return the weight (out, in) with the scales of its blocks, ready to give rows."""
        return Quantized(self, weight)

    def codes(self, scaled: Any) -> Any:
        """Return the 4-bit code (uint8) of each value in [-1, 1]; as `torch.bucketize`, ties go down."""
        import torch

        rank = torch.zeros(scaled.shape, dtype=torch.uint8)
        above = torch.empty(scaled.shape, dtype=torch.bool)
        for bound in self._bounds:
            torch.gt(scaled, bound, out=above)
            rank.add_(above.view(torch.uint8))
        return rank if self._order is None else self._order[rank.int()]

    def whole(self, weight: Any) -> Any:
        """The round trip of a weight whose last block is not full, by bitsandbytes alone."""
        import torch
        from bitsandbytes import functional

        config = self.config
        packed, state = functional.quantize_4bit(
            weight.contiguous(), quant_type=config.bnb_4bit_quant_type, blocksize=_BLOCK
        )
        scale = double(state.absmax) if config.bnb_4bit_use_double_quant else state.absmax
        bytes_needed = len(scale) * _BLOCK // 2
        padded = torch.nn.functional.pad(packed.view(-1), (0, bytes_needed - packed.numel()))
        return self.dequantize(padded, scale)[: weight.numel()].view(weight.shape)

    def dequantize(self, packed: Any, scale: Any) -> Any:
        """Return the values of whole blocks, one after another, in the compute dtype.

        Not with the weight's own shape: bitsandbytes 0.50.2's kernel for AVX512 takes the scales of wrong
        blocks where a row of a multiple of 16 does not end with a block (measured for 32, 48, 80, 96, 160, 176
        and 224 columns: errors 4 times those of NF4). Its generic and its GPU code give what this gives.
        """
        from bitsandbytes import functional

        state = functional.QuantState(
            absmax=scale,
            shape=(1, len(scale) * _BLOCK),
            dtype=self.config.bnb_4bit_compute_dtype,
            blocksize=_BLOCK,
            quant_type=self.config.bnb_4bit_quant_type,
        )
        return functional.dequantize_4bit(packed.view(-1, 1), state).view(-1)


class Quantized:
    """One weight in the eyes of the quantized layer; `step` is the least number of rows that ends a block."""

    def __init__(self, trip: RoundTrip, weight: Any) -> None:
        self._trip = trip
        self._weight = weight
        self.step = _BLOCK // gcd(_BLOCK, weight.shape[-1])
        self._done = None
        if weight.numel() % _BLOCK:
            self._done, self.step = trip.whole(weight), 1
            return
        self._largest = _absmax(weight)
        self._scale = double(self._largest) if trip.config.bnb_4bit_use_double_quant else self._largest

    def rows(self, start: int, end: int) -> Any:
        """Return the rows in the compute dtype; `start` and `end` are multiples of `step`, or the last row."""
        import torch

        if self._done is not None:
            return self._done[start:end]
        piece = self._weight[start:end]
        width = piece.shape[-1]
        blocks = slice(start * width // _BLOCK, end * width // _BLOCK)
        largest = self._largest[blocks]
        scaled = piece.to(torch.float32, copy=True).view(-1, _BLOCK)
        scaled.mul_((1.0 / largest.clamp(min=1e-38)).view(-1, 1)).clamp_(-1, 1)
        # Two codes to a byte, the first in the upper half: a pair read as a little-endian 16-bit number.
        pair = self._trip.codes(scaled.view(-1)).view(torch.int16)
        packed = ((pair << 4) | (pair >> 8)).to(torch.uint8)
        return self._trip.dequantize(packed, self._scale[blocks]).view(piece.shape)


def double(largest: Any) -> Any:
    """Double quantization (QLoRA, arXiv 2305.14314, section 3): the scales as 8-bit numbers, and back."""
    from bitsandbytes import functional

    offset = largest.mean()
    packed, state = functional.quantize_blockwise(largest - offset, blocksize=256)
    return functional.dequantize_blockwise(packed, state).add_(offset)


def _absmax(weight: Any) -> Any:
    """Return the largest magnitude of each block, in float32."""
    import torch

    blocks = weight.contiguous().view(-1, _BLOCK)
    found = torch.empty(len(blocks))
    for start in range(0, len(blocks), 4096):
        found[start : start + 4096] = blocks[start : start + 4096].float().abs().amax(dim=1)
    return found
