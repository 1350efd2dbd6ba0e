"""The round trip gives the very values that bitsandbytes' layer multiplies by."""

from __future__ import annotations

import pytest

from lora_eval.errors import ModelError
from lora_eval.exporters.round_trip import RoundTrip
from lora_eval.models.dense import dequantized_nf4
from lora_eval.models.resident import keep_quantized_weights


@pytest.mark.parametrize("stored", ["bfloat16", "float32", "float16"])
@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
@pytest.mark.parametrize(("quant_type", "double"), [("nf4", True), ("fp4", False)])
def test_it_equals_the_layer(stored, compute, quant_type, double):
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit

    weight = torch.randn(96, 64, generator=torch.Generator().manual_seed(0)).to(getattr(torch, stored))
    layer = Linear4bit(64, 96, bias=False, compute_dtype=getattr(torch, compute))
    layer.weight = Params4bit(
        weight.clone(), requires_grad=False, quant_type=quant_type, compress_statistics=double, module=layer
    ).to("cpu")
    keep_quantized_weights(layer)
    with torch.no_grad():
        used = layer.eval()(torch.eye(64).to(getattr(torch, compute))).T
    config = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": quant_type,
        "bnb_4bit_use_double_quant": double,
        "bnb_4bit_compute_dtype": compute,
    }
    found = RoundTrip(config)(weight)
    assert str(found.dtype) == f"torch.{compute}"
    assert torch.equal(found, used)
    assert torch.equal(dequantized_nf4(layer), used)
    assert not torch.equal(found.float(), weight.float())


def test_eight_bit_training_has_no_weights_to_merge_into():
    with pytest.raises(ModelError, match="8 bit"):
        RoundTrip({"load_in_8bit": True})
