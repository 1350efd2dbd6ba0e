"""Rounding to a quantizer's grid, and the matrix that a layer with an adapter multiplies by."""

from __future__ import annotations

import pytest

from lora_eval.models import open_resident
from lora_eval.models.quiet import without_gptqmodel
from lora_eval.verify.arithmetic import Grid, effective_weight, quantize_like, read_grid, round_to_nearest
from tests.conftest import save_tiny_adapter

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
PACKED = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32, "symmetric": True}}},
}


@pytest.mark.parametrize(
    ("config", "grid"),
    [
        (GPTQ, Grid(4, 64, True)),
        (AWQ, Grid(4, 128, False)),
        (PACKED, Grid(4, 32, True)),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, Grid(8, -1, True)),
        ({"quant_method": "fp8"}, None),
        ({"config_groups": {"a": {"weights": {}}, "b": {"weights": {}}}}, None),
    ],
)
def test_the_grid_is_read_from_the_configuration(config, grid):
    assert read_grid(config) == grid


@pytest.mark.parametrize(
    "grid", [Grid(4, 16, True), Grid(4, 16, False), Grid(8, -1, True), Grid(2, 32, False)]
)
def test_every_value_goes_to_the_nearest_of_the_grid(grid):
    import torch

    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    found = round_to_nearest(weight, grid)
    size = 32 if grid.group_size < 1 else grid.group_size
    groups, rounded = weight.reshape(-1, size), found.reshape(-1, size)
    for before, after in zip(groups, rounded, strict=True):
        span = 2 * before.abs().max() if grid.symmetric else before.max() - before.min()
        step = span / (2**grid.bits - 1)
        assert len(after.unique()) <= 2**grid.bits
        assert ((before - after).abs() <= 0.5 * step + 1e-6).all()


def test_the_matrix_of_a_layer_is_its_weight_with_the_adapter(tiny_llama, tiny_adapter):
    import torch
    from safetensors.torch import load_file

    resident = open_resident(tiny_llama, {"mine": tiny_adapter})
    name = "model.layers.0.self_attn.q_proj"
    tensors = load_file(tiny_adapter / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    plain = load_file(tiny_llama / "model.safetensors")[f"{name}.weight"]
    with resident.activate("mine") as model, torch.no_grad():
        assert torch.allclose(effective_weight(model.get_submodule(name)), plain + 2 * (b @ a), atol=1e-5)


@pytest.mark.parametrize("use_dora", [False, True])
def test_only_the_named_layers_are_rounded(tiny_llama, tmp_path, use_dora):
    import torch

    with without_gptqmodel():
        save_tiny_adapter(tiny_llama, tmp_path / "adapter", use_dora=use_dora)
    name, other = "model.layers.0.self_attn.v_proj", "model.layers.1.mlp.up_proj"
    ids = torch.arange(20)[None]

    def logits(resident, arm="mine"):
        with resident.activate(arm) as model, torch.no_grad():
            return model(input_ids=ids).logits

    before = logits(open_resident(tiny_llama, {"mine": tmp_path / "adapter"}))
    fine = quantize_like(
        open_resident(tiny_llama, {"mine": tmp_path / "adapter"}),
        "mine",
        Grid(16, -1, True),
        {name, other},
        "float32",
    )
    assert torch.allclose(logits(fine), before, atol=2e-3)  # 16 bits: the adapter is in, and stays in
    assert torch.equal(logits(fine), logits(fine))
    coarse = quantize_like(
        open_resident(tiny_llama, {"mine": tmp_path / "adapter"}),
        "mine",
        Grid(2, 32, True),
        {name},
        "float32",
    )
    assert len(coarse.model.get_submodule(name).weight[0, :32].unique()) <= 4
    assert not torch.allclose(logits(coarse), before, atol=2e-3)
