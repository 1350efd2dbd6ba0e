"""A GPTQ folder opened through transformers, optimum and gptqmodel, then evaluated with plain layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_eval.models import load_base, open_folder
from lora_eval.models.dense import dequantize_for_cpu

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
GROUP = 32


def save_rounded_gptq(base: Path, folder: Path) -> dict[str, Any]:
    """Write `base` in the GPTQ format, every layer rounded to 4 bit in groups of 32 (no calibration).

    Returns the weight (out, in) that each packed layer stands for.
    """
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    tensors, weights = {}, {}
    for name, tensor in load_file(base / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = tensor.half()
            continue
        layer = name.removesuffix(".weight")
        out, inner = tensor.shape
        groups = tensor.reshape(out, inner // GROUP, GROUP)
        scales = (groups.abs().amax(-1) / 7).half()  # (out, groups)
        codes = (groups / scales.float()[..., None]).round().clamp(-8, 7) + 8
        weights[layer] = ((codes - 8).half() * scales[..., None]).reshape(out, inner)
        columns = codes.reshape(out, inner).T.to(torch.int64).reshape(inner // 8, 8, out)
        shifts = torch.arange(0, 32, 4)
        zeros = torch.full((inner // GROUP, out // 8, 8), 7)  # the format stores the zero point minus one
        tensors |= {
            f"{layer}.qweight": _int32((columns << shifts[None, :, None]).sum(1)),
            f"{layer}.qzeros": _int32((zeros << shifts).sum(-1)),
            f"{layer}.scales": scales.T.contiguous(),
            f"{layer}.g_idx": torch.arange(inner, dtype=torch.int32) // GROUP,
        }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["dtype"] = "float16"
    settings = {"bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}
    config["quantization_config"] = settings | {"quant_method": "gptq", "checkpoint_format": "gptq"}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return weights


def _int32(tensor: Any) -> Any:
    """The same 32 bits, as the signed integers that the format stores."""
    import torch

    return torch.where(tensor >= 1 << 31, tensor - (1 << 32), tensor).to(torch.int32)


def test_plain_layers_compute_what_the_packed_ones_do(tiny_llama: Path, tmp_path: Path) -> None:
    pytest.importorskip("gptqmodel")
    import torch

    weights = save_rounded_gptq(tiny_llama, tmp_path / "gptq")
    packed = load_base(tmp_path / "gptq", dtype="bfloat16")
    layers = {name: m for name, m in packed.named_modules() if hasattr(m, "qweight")}
    assert layers.keys() == weights.keys()
    resident = open_folder(tmp_path / "gptq", name="gptq", dtype="bfloat16")
    assert resident.notes == ("14 quantized layers evaluated with their dequantized weights in bfloat16",)
    generator = torch.Generator().manual_seed(0)
    for name, layer in layers.items():
        plain = resident.model.get_submodule(name)
        assert type(plain) is torch.nn.Linear
        assert torch.allclose(plain.weight.float(), weights[name].float(), rtol=0.01)
        x = torch.randn(16, plain.in_features, generator=generator).bfloat16()
        with torch.inference_mode():
            expected, got = layer(x).float(), plain(x).float()
        assert (got - expected).abs().max() < 0.02 * expected.abs().max()
    ids = torch.tensor([[72, 101, 108, 108, 111]])
    with torch.inference_mode():
        expected = packed(input_ids=ids).logits.float().log_softmax(-1)
        got = resident.model(input_ids=ids).logits.float().log_softmax(-1)
    assert (expected.exp() * (expected - got)).sum(-1).max() < 1e-3
    assert dequantize_for_cpu(resident.model) == ()
