"""An AWQ folder (compressed-tensors, packed integers) opened by transformers: the values it stands for."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_eval.errors import MissingExtraError
from lora_eval.models import open_folder, open_resident
from lora_eval.models.compressed import dequantizing_config

GROUP = 32


def save_rounded_awq(base: Path, folder: Path, *, bits: int = 4, sym: bool = True) -> dict[str, Any]:
    """Write `base` in the form that llm-compressor gives it, packed by the compressed-tensors library: every
    layer rounded in groups of 32 (no calibration). Returns the weight that each layer stands for.
    """
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    weights = {"num_bits": bits, "type": "int", "symmetric": sym, "strategy": "group", "group_size": GROUP}
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    tensors, meant = {}, {}
    for name, tensor in load_file(base / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = tensor.bfloat16()
            continue
        layer = name.removesuffix(".weight")
        groups = tensor.reshape(tensor.shape[0], -1, GROUP)
        smallest, largest = groups.amin(-1), groups.amax(-1)
        if sym:
            scales = (groups.abs().amax(-1) / high).bfloat16()
            zeros = torch.zeros_like(scales, dtype=torch.int8)
        else:
            scales = ((largest - smallest) / (high - low)).bfloat16()
            zeros = (low - smallest / scales.float()).round().clamp(low, high).to(torch.int8)
        codes = (groups / scales.float()[..., None]).round() + zeros[..., None]
        codes = codes.clamp(low, high)
        exact = ((codes - zeros[..., None]) * scales.float()[..., None]).reshape(tensor.shape)
        meant[layer] = exact.bfloat16()
        state = {"weight": exact, "weight_scale": scales, "weight_zero_point": zeros}
        packed = compressor.compress(state, scheme)
        tensors |= {f"{layer}.{key}": value.contiguous() for key, value in packed.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["dtype"] = "bfloat16"
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return meant


@pytest.mark.parametrize(("bits", "sym"), [(4, True), (4, False), (8, True), (8, False)])
def test_the_layers_are_plain_and_hold_what_the_folder_says(
    tiny_llama: Path, tmp_path: Path, bits: int, sym: bool
) -> None:
    import torch

    meant = save_rounded_awq(tiny_llama, tmp_path / "awq", bits=bits, sym=sym)
    resident = open_folder(tmp_path / "awq", name="awq")
    assert resident.notes == ("weights stored as pack-quantized evaluated dequantized, in bfloat16",)
    assert len(meant) == 14
    for name, weight in meant.items():
        layer = resident.model.get_submodule(name)
        assert type(layer) is torch.nn.Linear
        assert not layer._forward_pre_hooks
        assert layer.forward.__func__ is torch.nn.Linear.forward
        assert [name for name, _ in (*layer.named_parameters(), *layer.named_buffers())] == ["weight"]
        assert torch.equal(layer.weight, weight)
    with torch.inference_mode():
        logits = resident.model(torch.tensor([[72, 101, 108]])).logits
    assert torch.isfinite(logits).all()


def test_an_adapter_sits_on_an_awq_base(tiny_llama: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    import torch

    save_rounded_awq(tiny_llama, tmp_path / "awq", sym=False)
    resident = open_resident(tmp_path / "awq", {"mine": tiny_adapter})
    ids = torch.tensor([[72, 101, 108]])
    logits = []
    for arm in resident.arms:
        with resident.activate(arm) as model, torch.inference_mode():
            logits.append(model(ids).logits)
    assert not torch.equal(*logits)


def test_quantized_activations_are_left_to_transformers(tiny_llama: Path, tmp_path: Path) -> None:
    save_rounded_awq(tiny_llama, tmp_path / "awq")
    assert dequantizing_config(tmp_path / "awq").quantization_config["dequantize"] is True
    path = tmp_path / "awq" / "config.json"
    config = json.loads(path.read_text("utf-8"))
    scheme = config["quantization_config"]["config_groups"]["group_0"]
    scheme["input_activations"] = {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token"}
    path.write_text(json.dumps(config), "utf-8")
    assert dequantizing_config(tmp_path / "awq") is None
    assert dequantizing_config(tiny_llama) is None


def test_without_compressed_tensors_the_pip_command_is_named(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_rounded_awq(tiny_llama, tmp_path / "awq")
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lora-eval\[awq\]'"):
        dequantizing_config(tmp_path / "awq")
