"""The base as PiSSA and OLoRA left it: both begin by taking B @ A out of the weight that stays frozen.

A saved adapter of these kinds holds the trained A and B only. Loading it, PEFT repeats the beginning on the
base (a singular value or QR decomposition, the same each time), and so does this, by PEFT's own layers.
PiSSA: arXiv 2404.02948, section 3; OLoRA: arXiv 2406.01775, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_eval.errors import ModelError
from lora_eval.exporters.base_files import Layer
from lora_eval.exporters.lora import Lora


def drifted(
    weight: Any, layer: Layer, lora: Lora, *, initial: str, use_rslora: bool, quantization: Any, folder: Path
) -> Any:
    """Return the frozen weight (out, in) after the beginning, as the model used it.

    `weight` is the base's (out, in) in the dtype it was loaded in; `quantization` the `BitsAndBytesConfig` of
    the training, or None where this layer was not quantized.

    Raises:
        ModelError: PEFT cannot begin so on such a layer (PiSSA on 4-bit weights, OLoRA on Conv1D).
    """
    from peft.tuners.lora import bnb
    from peft.tuners.lora import layer as plain

    module = _module(weight, layer, quantization)
    kind = bnb.Linear4bit if quantization is not None else plain.Linear
    options = {"use_rslora": use_rslora, "fan_in_fan_out": layer.transposed}
    begin(kind, module, lora, initial, options, f"{folder}: init_lora_weights '{initial}' on {layer.module}")
    if quantization is not None:
        from lora_eval.models.dense import dequantized_nf4

        return dequantized_nf4(module)
    found = module.weight.detach()
    return found.T.contiguous() if layer.transposed else found


def begin(kind: Any, module: Any, lora: Lora, initial: str, options: Mapping[str, Any], where: str) -> Any:
    """Return PEFT's layer of this kind on `module` as training began, with A and B; what they take out of the
    module's weight is gone from it. `options` are more of `LoraConfig`.

    Raises:
        ModelError: PEFT cannot begin so on such a layer; `where` begins the message.
    """
    import torch
    from peft import LoraConfig

    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, init_lora_weights=initial, **options)
    try:
        with torch.no_grad():
            return kind(module, "default", config=config, r=lora.rank, lora_alpha=lora.alpha)
    except (TypeError, RuntimeError, ValueError) as error:
        raise ModelError(f"{where}: PEFT cannot begin so: {error}") from error


def _module(weight: Any, layer: Layer, quantization: Any) -> Any:
    """Return the base's layer with this weight, as transformers makes it."""
    import torch
    from transformers.pytorch_utils import Conv1D

    out, inputs = weight.shape
    if quantization is not None:
        from bitsandbytes.nn import Linear4bit, Params4bit

        module = Linear4bit(inputs, out, bias=False, compute_dtype=quantization.bnb_4bit_compute_dtype)
        module.weight = Params4bit(
            weight.clone(),
            requires_grad=False,
            quant_type=quantization.bnb_4bit_quant_type,
            compress_statistics=quantization.bnb_4bit_use_double_quant,
            module=module,
        ).to("cpu")
        return module
    if layer.transposed:
        module = Conv1D(out, inputs)
        module.weight = torch.nn.Parameter(weight.T.contiguous(), requires_grad=False)
        return module
    module = torch.nn.Linear(inputs, out, bias=False, device="meta")
    module.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    return module
