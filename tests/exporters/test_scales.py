"""Double quantization by the rules of a CPU and of a GPU."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_eval.exporters.scales import borders, cpu_scales, gpu_scales, nearest_codes
from tests.exporters.conftest import QLORA


def search(code, x):
    """`dQuantize<0>` of bitsandbytes' csrc/kernels.cu (MIT), line by line, on float32 numbers."""
    import numpy

    half = numpy.float32(0.5)
    pivot, upper_pivot, lower_pivot = 127, 255, 0
    lower, upper, val = code[0], code[255], code[127]
    for step in (64, 32, 16, 8, 4, 2, 1):
        if x > val:
            lower_pivot, lower = pivot, val
            pivot += step
        else:
            upper_pivot, upper = pivot, val
            pivot -= step
        val = code[pivot]
    if x > val:
        return upper_pivot if x > (upper + val) * half else pivot
    return lower_pivot if x < (lower + val) * half else pivot


@pytest.fixture(scope="module")
def code():
    import torch
    from bitsandbytes import functional

    return functional.create_dynamic_map().to(torch.float32)


def test_a_gpu_searches_for_the_nearest_code(code):
    """Random values, and every code and border with its two neighbours."""
    import torch

    middles = (code[1:] + code[:-1]) * 0.5
    ends = [torch.full_like, torch.inf, -torch.inf]
    edges = [each for base in (code, middles)
             for each in (base, *(base.nextafter(ends[0](base, end)) for end in ends[1:]))]  # fmt: skip
    random = torch.rand(5000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    values = torch.cat([*edges, random, torch.tensor([0.0, -0.0, 1.0000001])])
    table = code.numpy()
    assert nearest_codes(values, code).tolist() == [search(table, x) for x in values.numpy()]


@settings(deadline=None, max_examples=50)
@given(count=st.integers(1, 2000), seed=st.integers(0, 99), offset=st.one_of(st.none(), st.floats(0.5, 2)))
def test_the_first_candidate_has_exact_reciprocals_and_others_are_a_last_place_off(count, seed, offset):
    import torch
    from bitsandbytes import functional

    code = functional.create_dynamic_map().to(torch.float32)
    largest = torch.rand(count, generator=torch.Generator().manual_seed(seed)) * 0.1 + 1
    mean = largest.mean() if offset is None else torch.tensor(offset)
    expected = []
    for group in (largest - mean).split(256):
        peak = group.abs().max()
        codes = nearest_codes(group * (1.0 / peak), code)
        expected.append(code[codes] * peak + mean)
    found, *others = gpu_scales(largest, offset)
    assert torch.equal(found, torch.cat(expected))
    assert all(0 < int((other != found).sum()) <= 3 * 3 for other in others)


def open_group(code):
    """256 scales, one of which gets another code where the reciprocal is a last place off."""
    import torch

    middle = (code[200] + code[201]) * 0.5
    group = torch.full((256,), 0.25)
    group[0] = 0.75
    group[1] = middle / (1.0 / group[0])
    for _ in range(4):
        if len(gpu_scales(group, 0.0)) > 1:
            return group
        group[1] = group[1].nextafter(torch.tensor(-1.0))
    raise AssertionError("no value near the border left the code open")


def test_a_last_place_that_decides_makes_a_candidate(code):
    group = open_group(code)
    found = {float(each[1]) for each in gpu_scales(group, 0.0)}
    assert found == {float(code[index] * group[0]) for index in (200, 201)}


@settings(deadline=None, max_examples=60)
@given(index=st.integers(0, 254), peak=st.floats(0.5, 1, width=32), steps=st.integers(-6, 6))
def test_a_group_is_left_open_where_a_last_place_decides_and_nowhere_else(index, peak, steps):
    import torch
    from bitsandbytes import functional

    code = functional.create_dynamic_map().to(torch.float32)
    group = torch.full((256,), peak)
    group[1] = (code[index] + code[index + 1]) * 0.5 * peak
    for _ in range(abs(steps)):
        group[1] = group[1].nextafter(torch.tensor(float(steps)))
    exact = 1.0 / group[:1]
    ways = [exact, *(exact.nextafter(torch.tensor(end)) for end in (0.0, torch.inf))]
    found = {tuple(nearest_codes(group * way, code).tolist()) for way in ways}
    scales = {tuple((code[list(codes)] * group[0]).tolist()) for codes in found}
    assert {tuple(each.tolist()) for each in gpu_scales(group, 0.0)} == scales


@pytest.mark.parametrize("which", [0, 1])
def test_trainings_checksum_tells_which_candidate_it_was(code, which):
    import torch

    from lora_eval.exporters.round_trip import RoundTrip
    from lora_eval.models.trained_base import Checksum
    from lora_eval.records import TrainedBase, TrainedLayer

    group = open_group(code)
    weight = torch.rand(256, 64, generator=torch.Generator().manual_seed(0)) * group.view(-1, 1)
    weight[:, 5] = group
    scales = gpu_scales(group, 0.0)[which]
    codes = borders("nf4", gpu=True)
    rank = sum(((weight * (1.0 / group.view(-1, 1))) > border).long() for border in codes[0])
    expected = (codes[1][rank] * scales.view(-1, 1)).bfloat16()
    checksum = Checksum()
    checksum.add(expected)
    layer = TrainedLayer(checksum=str(checksum), offset=0.0)
    seen = TrainedBase(device="a GPU", dtype="bfloat16", layers={"layer": layer})
    found = RoundTrip(QLORA, seen).prepare(weight, module="layer")
    assert torch.equal(torch.cat([found.rows(0, 64).clone(), found.rows(64, 256).clone()]), expected)
    assert str(found.checksum) == layer.checksum


def test_a_cpu_takes_the_neighbour_of_the_nearest_code_now_and_then():
    import torch
    from bitsandbytes import functional

    largest = torch.rand(1 << 16, generator=torch.Generator().manual_seed(0)) * 0.02 + 0.05
    packed, state = functional.quantize_blockwise(largest - largest.mean(), blocksize=256)
    expected = functional.dequantize_blockwise(packed, state) + largest.mean()
    assert torch.equal(cpu_scales(largest), expected)
    differing = float((gpu_scales(largest)[0] != expected).float().mean())
    assert 1e-4 < differing < 1e-2


def four_bits(quant_type, x):
    """`dQuantizeNF4` and `dQuantizeFP4` of csrc/kernels.cu: value of the code of one float32 number."""
    import numpy

    def above(limit):
        return x > numpy.float32(limit)

    if quant_type == "nf4":
        limits = (-0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544,
                  -0.23460740596055984, -0.13791173323988914, -0.045525018125772476, 0.03979014977812767,
                  0.1202552504837513, 0.2035212516784668, 0.2920137718319893, 0.3893125355243683,
                  0.5016634166240692, 0.6427869200706482, 0.8614784181118011)  # fmt: skip
        values = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                  -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
                  0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
                  0.7229568362236023, 1.0)  # fmt: skip
        return numpy.float32(values[sum(above(limit) for limit in limits)])
    sign = numpy.float32(-1.0 if x < 0 else 1.0)
    x = abs(x)
    limits = (0.00260417, 0.0859375, 0.20833333, 0.29166667, 0.4166667, 0.583333, 0.8333333)
    values = (0.0, 0.005208333333, 0.16666667, 0.25, 0.33333333, 0.5, 0.66666667, 1.0)
    return numpy.float32(values[sum(above(limit) for limit in limits)]) * sign


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_a_gpus_borders(quant_type):
    import numpy
    import torch

    bounds, values = borders(quant_type, gpu=True)
    edges = torch.tensor(bounds + borders(quant_type, gpu=False)[0] + [0.0, -0.0, 1.0, -1.0])
    near = [edges, *(edges.nextafter(torch.tensor(end)) for end in (torch.inf, -torch.inf))]
    random = torch.rand(2000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    numbers = torch.cat([*near, random])
    found = values[sum((numbers > bound).long() for bound in bounds)].numpy()
    expected = numpy.array([four_bits(quant_type, x) for x in numbers.numpy()])
    assert (found.view(numpy.int32) == expected.view(numpy.int32)).all()


def test_no_quotient_of_bfloat16_numbers_is_near_a_border_of_nf4():
    """Nearer than 19 * 2^-24 of it: so an approximate reciprocal (4 * 2^-24) gives the same codes."""
    import numpy

    mantissas = numpy.arange(128, 256, dtype=numpy.float64)
    quotients = mantissas[:, None] / mantissas[None, :]  # 0.5 to 2
    for border in {abs(border) for gpu in (True, False) for border in borders("nf4", gpu=gpu)[0]}:
        octaves = [border * 2.0**power for power in range(8) if 0.5 <= border * 2.0**power < 2]
        assert min(float(numpy.abs(quotients / octave - 1).min()) for octave in octaves) > 19 * 2**-24


@pytest.mark.parametrize(("quant_type", "value"), [("nf4", -1.0), ("fp4", 0.0)])
def test_a_block_of_zeros_on_a_gpu(quant_type, value):
    """0 times an infinite reciprocal is no number: no comparison holds, so it has the code of all bits 0."""
    import torch

    from lora_eval.exporters.round_trip import RoundTrip
    from lora_eval.records import TrainedBase

    weight = torch.randn(20, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight[7] = 0
    quantization = QLORA | {"bnb_4bit_quant_type": quant_type, "bnb_4bit_compute_dtype": "float32"}
    trip = RoundTrip(quantization, TrainedBase(device="a GPU", dtype="float32", layers={}))
    found = trip(weight)
    scales = gpu_scales(weight.float().abs().amax(1))[0]
    assert torch.equal(found[7], torch.full((64,), value) * scales[7])
    assert torch.isfinite(found).all()


def test_a_gpu_takes_the_reciprocal_for_the_last_block_too():
    """bitsandbytes' CPU code divides there: quotient and product may lie on two sides of a border."""
    import torch

    from lora_eval.exporters.round_trip import RoundTrip
    from lora_eval.records import TrainedBase

    border = torch.tensor(borders("nf4", gpu=True)[0][12])
    peaks = torch.rand(10_000, generator=torch.Generator().manual_seed(0)) + 0.5
    number = border * peaks
    apart = ((number / peaks > border) != (number * (1.0 / peaks) > border)).nonzero()[0]
    weight = torch.zeros(1, 70)
    weight[0, 64], weight[0, 65] = peaks[apart], number[apart]
    once = QLORA | {"bnb_4bit_use_double_quant": False, "bnb_4bit_compute_dtype": "float32"}
    here, gpu = (
        RoundTrip(once, TrainedBase(device=device, dtype="float32", layers={}))(weight)[0, 65]
        for device in ("cpu", "a GPU")
    )
    above = float(number[apart] * (1.0 / peaks[apart])) > float(border)
    values = borders("nf4", gpu=True)[1]
    assert float(gpu) == float(values[12 + above] * peaks[apart])
    assert float(here) == float(values[13 - above] * peaks[apart])
