"""What an adapted layer adds, read from PEFT's own layers; more than plain LoRA stays with PEFT."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

from lora_eval.models.deltas import adapted_layer


def _layer(live: str = "one", **options: Any) -> Any:
    """A linear layer under two adapters with weights that are not zero."""
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["0"], init_lora_weights=False, **options)
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(16, 8)), config, adapter_name="one")
    model.add_adapter("two", config)
    layer = model.eval().base_model.model[0]
    layer.set_adapter(live)
    return layer


@pytest.mark.parametrize("live", ["one", "two"])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"lora_dropout": 0.5}])
def test_base_and_delta_are_the_layers_output(live: str, options: dict[str, Any]) -> None:
    layer, x = _layer(live, **options), torch.randn(5, 16)
    found = adapted_layer(layer)
    assert found is not None
    assert found.a is not None
    ours = found.base(x) + found.scaling * (x @ found.a.T) @ found.b.T
    torch.testing.assert_close(ours, layer(x))


def test_a_layer_that_is_off_is_its_base() -> None:
    layer = _layer()
    assert isinstance(layer, BaseTunerLayer)
    layer.enable_adapters(enabled=False)
    found = adapted_layer(layer)
    assert found is not None
    assert (found.base, found.a) == (layer.base_layer, None)


def test_a_layer_that_the_live_adapter_leaves_alone_is_its_base() -> None:
    layer = _layer("two")
    layer.delete_adapter("one")
    layer._active_adapter = ["one"]
    found = adapted_layer(layer)
    assert found is not None
    assert found.a is None


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_more_than_plain_lora_is_left_to_peft(options: dict[str, Any]) -> None:
    assert adapted_layer(_layer(**options)) is None


def test_two_live_adapters_merged_weights_and_training_are_left_to_peft() -> None:
    layer = _layer()
    layer._active_adapter = ["one", "two"]
    assert adapted_layer(layer) is None
    assert adapted_layer(_layer().train()) is None
    merged = _layer()
    merged.merge()
    assert adapted_layer(merged) is None
    assert adapted_layer(torch.nn.Linear(3, 3)) is None
