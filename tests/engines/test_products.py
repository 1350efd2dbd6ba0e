"""Products through oneDNN against float64, and nothing else than float32 on a CPU through them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from lora_eval.engines import products
from lora_eval.engines.transformers import TransformersEngine
from lora_eval.models import Resident
from lora_eval.models.deltas import AdaptedLayer
from lora_eval.protocols import ScoreRequest


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_LEAST", 1)
    monkeypatch.setattr(products, "_LEAST_ATTENTION", 1)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what oneDNN was asked."""
    seen: list[tuple[int, ...]] = []
    real = torch.ops.mkldnn._linear_pointwise

    class Counted:
        def _linear_pointwise(self, x: torch.Tensor, *rest: Any) -> torch.Tensor:
            seen.append(tuple(x.shape))
            return real(x, *rest)

    monkeypatch.setattr(torch.ops, "mkldnn", Counted())
    return seen


def _draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", [(7, 64), (2, 9, 64), (1, 1, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape: tuple[int, ...], bias: bool, calls: list) -> None:
    x, weight, b = _draw(*shape), _draw(48, 64), _draw(48) if bias else None
    found = products.linear(x, weight, b)
    expected = x.double() @ weight.double().T + (b.double() if b is not None else 0)
    assert calls == [shape]
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 5e-5  # of values up to 30


def test_rows_that_are_not_contiguous(calls: list) -> None:
    x, weight = _draw(5, 3, 64).transpose(0, 1), _draw(16, 64)
    assert not x.is_contiguous()
    expected = x.double() @ weight.double().T
    assert float((products.linear(x, weight) - expected).abs().max()) < 5e-5
    assert len(calls) == 1


def test_batched_products() -> None:
    a, b = _draw(3, 10, 32), _draw(20, 3, 32).transpose(0, 1)
    expected = a.double() @ b.double().transpose(1, 2)
    assert float((products.batched(a, b) - expected).abs().max()) < 5e-5


@pytest.mark.parametrize("least", [1, 1 << 30])  # oneDNN's product, and torch's own
def test_batched_products_into_a_part_of_a_tensor(least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_LEAST", least)
    place = torch.full((2, 40, 100), 7.0)
    a, b = _draw(2, 40, 32), _draw(2, 60, 32)
    products.batched(a, b, out=place[..., :60])
    assert float((place[..., :60] - a.double() @ b.double().transpose(1, 2)).abs().max()) < 5e-5
    assert bool((place[..., 60:] == 7).all())


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention(masked: bool, scale: float | None, calls: list) -> None:
    query, key, value = _draw(1, 2, 12, 16), _draw(1, 2, 30, 16), _draw(1, 2, 30, 24)
    mask = torch.zeros(12, 30).masked_fill_(_draw(12, 30) > 1, float("-inf")) if masked else None
    mask_double = mask.double() if mask is not None else None
    expected = scaled_dot_product_attention(
        query.double(), key.double(), value.double(), attn_mask=mask_double, scale=scale
    )
    found = products.attend(query, key, value, mask, scale)
    assert len(calls) == 4  # two products for each head
    assert float((found - expected).abs().max()) < 1e-5


def test_other_dtypes_and_small_products_are_torchs_own(calls: list, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = _draw(4, 8), _draw(6, 8)
    half = products.linear(x.bfloat16(), weight.bfloat16())
    assert torch.equal(half, torch.nn.functional.linear(x.bfloat16(), weight.bfloat16()))
    monkeypatch.setattr(products, "_LEAST", 4 * 8 * 6 + 1)
    assert torch.equal(products.linear(x, weight), torch.nn.functional.linear(x, weight))
    assert calls == []


@pytest.mark.parametrize("rows", [1, 5, 33, products.Packed.ROWS + 1])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_weights_give_the_same_bits_within_their_limit(rows: int, bias: bool) -> None:
    layers = [torch.nn.Linear(64, 48, bias=bias) for _ in range(3)]
    packs = products.Packed(2 * layers[0].weight.nbytes)
    with torch.inference_mode():
        for layer in layers:
            x = _draw(rows, 64)
            found = packs.linear(x, AdaptedLayer(layer))
            assert found is None or torch.equal(found, products.linear(x, layer.weight, layer.bias))
    assert len(packs._weights) == (2 if rows <= packs.ROWS else 0)


@pytest.mark.parametrize("rows", [5, products.Packed.ROWS + 1])
def test_a_packed_weight_holds_the_delta(rows: int) -> None:
    layer = AdaptedLayer(torch.nn.Linear(64, 48), _draw(4, 64), _draw(48, 4), 0.5)
    packs = products.Packed(layer.base.weight.nbytes)
    before = layer.base.weight.clone()
    x = _draw(rows, 64)
    with torch.inference_mode():
        found = products._forward(packs, layer, x)
        weight = layer.base.weight.double() + 0.5 * layer.b.double() @ layer.a.double()
        expected = x.double() @ weight.t() + layer.base.bias.double()
    assert float((found - expected).abs().max()) < 1e-4 < float(expected.abs().max())
    assert len(packs._weights) == (rows <= packs.ROWS)
    assert torch.equal(layer.base.weight, before)


@pytest.mark.parametrize("packed_bytes", [0, 1 << 20])
def test_lora_in_one_pass_is_pefts_own_output(resident: Resident, packed_bytes: int) -> None:
    x = _draw(2, 7, 64)
    with resident.activate("tuned") as model, torch.inference_mode():
        layers = [module for module in model.modules() if hasattr(module, "lora_A")]
        wide = [layer for layer in layers if layer.in_features == 64]
        expected = [layer(x) for layer in wide]
        plain = [layer.base_layer(x) for layer in wide]
        with products.installed(model, packed_bytes):
            assert all("forward" in vars(layer) for layer in layers)
            found = [layer(x) for layer in wide]
    assert wide
    for ours, theirs, base in zip(found, expected, plain, strict=True):
        assert float((ours - theirs).abs().max()) < 1e-5 < float((theirs - base).abs().max())


def test_a_models_layers_are_as_before_afterwards(resident: Resident) -> None:
    layers = [m for m in resident.model.modules() if type(m) is torch.nn.Linear]
    with products.installed(resident.model):
        assert all("forward" in vars(layer) for layer in layers)
    assert layers
    assert not any("forward" in vars(layer) for layer in layers)


@pytest.mark.parametrize("arm", ["base", "tuned"])
def test_scores_of_the_engine(resident: Resident, arm: str, calls: list) -> None:
    requests = [ScoreRequest(tuple(range(40, 60 + n)), (n, n + 1)) for n in range(12)]
    engine = TransformersEngine(resident)
    calls.clear()
    scores = engine.score(arm, requests, lambda *_: None)
    assert len(calls) >= 2 * (7 + 2) + 1  # two layers of seven products and attention, and the head
    with resident.activate(arm) as model, torch.inference_mode():
        for request, score in zip(requests, scores, strict=True):
            ids = torch.tensor([[*request.context_ids, *request.continuation_ids]])
            values = torch.log_softmax(model(input_ids=ids).logits[0, -3:-1], dim=-1)
            expected = float(values.gather(1, ids[0, -2:, None]).sum())
            assert score.log_likelihood == pytest.approx(expected, rel=1e-5)
