"""What training's layers held: checksums that every bit changes, and that pieces in any order give."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_eval.models import NF4, load_base, trained_base
from lora_eval.models.dense import dequantized_nf4, nf4_layers
from lora_eval.models.trained_base import Checksum, observe


def _checksum(*pieces):
    found = Checksum()
    for piece, first in pieces:
        found.add(piece, first)
    return str(found)


@settings(deadline=None)  # the first import of torch
@given(
    data=st.binary(min_size=2, max_size=300).filter(lambda data: len(data) % 2 == 0),
    order=st.randoms(),
    width=st.integers(1, 5),
)
def test_it_is_the_two_sums_whatever_the_pieces(data, order, width):
    import torch

    values = torch.frombuffer(bytearray(data), dtype=torch.int16).view(torch.bfloat16)
    padded = data + bytes(-len(data) % 8)
    words = [int.from_bytes(padded[n : n + 8], "little") for n in range(0, len(padded), 8)]
    plain = sum(words) % 2**64
    weighted = sum((2 * index + 1) * word for index, word in enumerate(words)) % 2**64
    assert _checksum((values, 0)) == f"{plain:016x}{weighted:016x}"
    step = 4 * width
    pieces = [(values[first : first + step], first) for first in range(0, len(values), step)]
    order.shuffle(pieces)
    assert _checksum(*pieces, pieces[0]) == _checksum((values, 0))


@settings(deadline=None)
@given(bit=st.integers(0, 16 * 96 - 1))
def test_every_bit_and_every_place_counts(bit):
    import torch

    values = torch.randn(96, generator=torch.Generator().manual_seed(0)).bfloat16()
    other = values.clone()
    other.view(torch.int16)[bit // 16] ^= torch.tensor(1 << bit % 16, dtype=torch.int32).to(torch.int16)
    assert _checksum((other, 0)) != _checksum((values, 0))
    moved = torch.cat([values[8:], values[:8]])
    assert _checksum((moved, 0)) != _checksum((values, 0))


def test_a_tensor_of_many_words_is_summed_in_parts(monkeypatch):
    import torch

    values = torch.randn(4097, generator=torch.Generator().manual_seed(0))
    whole = _checksum((values, 0))
    trained_base._odd.cache_clear()
    monkeypatch.setattr(trained_base, "_AT_ONCE", 100)
    assert _checksum((values, 0)) == whole
    trained_base._odd.cache_clear()


def test_a_piece_that_begins_within_a_word_is_refused():
    import torch

    with pytest.raises(ValueError, match="element 3"):
        _checksum((torch.zeros(8).bfloat16(), 3))


def test_a_loaded_base_is_seen_layer_by_layer(tiny_llama):
    model = load_base(tiny_llama, dtype="bfloat16", quantization=NF4)
    seen = observe(model)
    layers = nf4_layers(model)
    assert seen.layers.keys() == layers.keys() and layers
    assert (seen.device, seen.dtype) == ("cpu", "bfloat16")
    name, module = next(iter(layers.items()))
    assert seen.layers[name].checksum == _checksum((dequantized_nf4(module), 0))
    assert seen.layers[name].offset == float(module.weight.quant_state.offset)
    single = observe(load_base(tiny_llama, quantization=NF4 | {"bnb_4bit_use_double_quant": False}))
    assert single.layers[name].offset is None
    assert single.layers[name].checksum != seen.layers[name].checksum
    assert observe(load_base(tiny_llama)) is None
