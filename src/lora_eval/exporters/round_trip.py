"""The values that training saw: bitsandbytes' own 4-bit quantization of a weight, and back."""

from __future__ import annotations

from typing import Any

from lora_eval.errors import ModelError


class RoundTrip:
    """Quantizes and dequantizes as `Linear4bit` does with these `BitsAndBytesConfig` arguments.

    The result is in the compute dtype: bitsandbytes 0.50.2 dequantizes straight into the dtype of the
    layer's input (`gemm_4bit` in `backends/default/ops.py`), so these are the values that were multiplied.
    """

    def __init__(self, quantization: dict[str, Any]) -> None:
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
        self._config = config

    def __call__(self, weight: Any) -> Any:
        """Return the weight (out, in) as the quantized layer used it."""
        from bitsandbytes import functional

        config = self._config
        packed, state = functional.quantize_4bit(
            weight.contiguous(),
            compress_statistics=config.bnb_4bit_use_double_quant,
            quant_type=config.bnb_4bit_quant_type,
            quant_storage=config.bnb_4bit_quant_storage,
            blocksize=64,  # Params4bit's own, not an option of BitsAndBytesConfig
        )
        state.dtype = config.bnb_4bit_compute_dtype
        return functional.dequantize_4bit(packed, state)
