"""The round trip gives the very values that bitsandbytes' layer multiplies by."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_eval.errors import ModelError
from lora_eval.exporters.round_trip import RoundTrip
from lora_eval.models.dense import dequantized_nf4
from lora_eval.models.resident import keep_quantized_weights
from lora_eval.records import TrainedBase, TrainedLayer

ON_A_CPU = TrainedBase(device="cpu", dtype="", layers={})


def round_trip(quant_type, double, compute, seen=ON_A_CPU):
    quantization = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": quant_type,
        "bnb_4bit_use_double_quant": double,
        "bnb_4bit_compute_dtype": compute,
    }
    return RoundTrip(quantization, seen)


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
    found = round_trip(quant_type, double, compute)(weight)
    assert str(found.dtype) == f"torch.{compute}"
    assert torch.equal(found, used)
    assert torch.equal(dequantized_nf4(layer), used)
    assert not torch.equal(found.float(), weight.float())


@pytest.mark.parametrize("width", [16, 48, 80, 96, 172, 176, 224])
def test_layers_whose_rows_end_within_a_block(width):
    """On AVX512 bitsandbytes' own CPU code is wrong for multiples of 16; the GPU's values are what counts."""
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit

    weight = torch.randn(24, width, generator=torch.Generator().manual_seed(1)).bfloat16()
    layer = Linear4bit(width, 24, bias=False, compute_dtype=torch.bfloat16)
    layer.weight = Params4bit(
        weight.clone(), requires_grad=False, quant_type="nf4", compress_statistics=True, module=layer
    ).to("cpu")
    trip = round_trip("nf4", True, "bfloat16")
    assert torch.equal(dequantized_nf4(layer), by_bitsandbytes(weight, trip.config))
    assert torch.equal(dequantized_nf4(layer), trip(weight))


def by_bitsandbytes(weight, config):
    """bitsandbytes' quantization and its generic dequantization, which its GPU code equals."""
    from bitsandbytes import functional
    from bitsandbytes.backends.default import ops

    packed, state = functional.quantize_4bit(
        weight, quant_type=config.bnb_4bit_quant_type, compress_statistics=config.bnb_4bit_use_double_quant
    )
    scale = state.absmax
    if state.nested:
        scale = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    generic = inspect.unwrap(ops._dequantize_4bit_compute)
    arguments = (packed.reshape(-1), scale, state.code, 64, weight.shape, config.bnb_4bit_compute_dtype)
    return generic(*arguments)


@settings(deadline=None, max_examples=80)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 200)),
    stored=st.sampled_from(["bfloat16", "float32", "float16"]),
    compute=st.sampled_from(["bfloat16", "float32", "float16"]),
    quant_type=st.sampled_from(["nf4", "fp4"]),
    double=st.booleans(),
    zeros=st.integers(0, 130),
    seed=st.integers(0, 99),
)
def test_every_bit_is_bitsandbytes(shape, stored, compute, quant_type, double, zeros, seed):
    """Whatever the rows' length, also where blocks of 64 run over their ends, and for blocks of zeros."""
    import torch

    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(getattr(torch, stored))
    weight.view(-1)[:zeros] = 0
    trip = round_trip(quant_type, double, compute)
    expected = by_bitsandbytes(weight, trip.config)
    bits = {2: torch.int16, 4: torch.int32}[expected.element_size()]
    assert torch.equal(trip(weight).view(bits), expected.view(bits))
    quantized = trip.prepare(weight)
    step = quantized.step
    rows = [quantized.rows(n, min(n + step, len(weight))).clone() for n in range(0, len(weight), step)]
    assert torch.equal(torch.cat(rows).view(bits), expected.view(bits))


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
@pytest.mark.parametrize("shape", [(256, 4096), (96, 176), (33, 172)])
def test_every_bit_is_that_of_a_gpu(shape, compute, quant_type, double):
    """`bitsandbytes` with its CUDA library on a GPU, against the round trip on this machine's CPU, which has
    what training keeps of the layer.
    """
    import torch
    from bitsandbytes import functional

    from lora_eval.models.trained_base import Checksum

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    dtype = getattr(torch, compute)
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    packed, state = functional.quantize_4bit(
        weight.cuda(), quant_type=quant_type, compress_statistics=double, blocksize=64
    )
    state.dtype = dtype
    expected = functional.dequantize_4bit(packed, state).cpu()
    assert expected.dtype == dtype
    checksum = Checksum()
    checksum.add(expected)
    kept = TrainedLayer(checksum=str(checksum), offset=float(state.offset) if double else None)
    seen = TrainedBase(device=torch.cuda.get_device_name(), dtype=compute, layers={"layer": kept})
    trip = round_trip(quant_type, double, compute, seen)
    assert torch.equal(trip.prepare(weight, module="layer").rows(0, len(weight)), expected)


def test_values_on_a_border_take_the_lower_code():
    import torch

    trip = RoundTrip({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, ON_A_CPU)
    weight = torch.tensor([1.0, *trip.bounds]).repeat(4).view(1, 64)
    assert torch.equal(trip(weight).float(), by_bitsandbytes(weight, trip.config).float())


def test_eight_bit_training_has_no_weights_to_merge_into():
    with pytest.raises(ModelError, match="8 bit"):
        RoundTrip({"load_in_8bit": True})
