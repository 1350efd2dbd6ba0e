"""One copy of the base for all arms; switching an adapter off gives exactly the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_eval.errors import ModelError
from lora_eval.models import (
    IDENTITY,
    Resident,
    load_base,
    load_tokenizer,
    open_folder,
    open_resident,
    package_versions,
)
from tests.conftest import save_tiny_adapter

IDS = [[72, 101, 108, 108, 111, 32, 119]]
NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}


def _is_4bit(model: Any) -> bool:
    return any("4bit" in type(m).__name__ for n, m in model.named_modules() if n.endswith("base_layer"))


def _logits(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.tensor(IDS)).logits


def test_base_and_adapters_share_one_copy_and_are_exactly_themselves(
    tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel

    save_tiny_adapter(tiny_llama, tmp_path / "other", seed=2, r=2, target_modules=["q_proj", "v_proj"])
    adapters = {"first.v1": tiny_adapter, "second": tmp_path / "other"}
    resident = open_resident(tiny_llama, adapters, identity_control=True)
    assert resident.arms == ("base", "first.v1", "second")
    assert resident.dtype == "float32"
    seen = {}
    for arm in ("second", "base", "first.v1", IDENTITY, "base"):
        with resident.activate(arm) as model:
            seen[arm] = _logits(model)
    plain = load_base(tiny_llama)
    assert torch.equal(seen["base"], _logits(plain))
    assert torch.equal(seen[IDENTITY], seen["base"])
    for arm, folder in adapters.items():
        alone = PeftModel.from_pretrained(load_base(tiny_llama), folder).eval()
        assert torch.equal(seen[arm], _logits(alone))
        assert not torch.equal(seen[arm], seen["base"])
    assert seen["base"].shape[-1] == 320  # never resized to the tokenizer's 259


def test_a_quantized_base_answers_the_same_after_many_forwards(tiny_llama: Path, tiny_adapter: Path) -> None:
    """Trap A: the first forward in eval mode must not repack the weights."""
    import torch
    from bitsandbytes.functional import dequantize_4bit

    resident = open_resident(tiny_llama, {"tuned": tiny_adapter}, quantization=NF4)
    layer = resident.model.model.layers[0].mlp.up_proj.base_layer
    before = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    with resident.activate("base") as model:
        first = _logits(model)
    with resident.activate("tuned") as model:
        _logits(model)
    with resident.activate("base") as model:
        assert torch.equal(_logits(model), first)
    assert torch.equal(dequantize_4bit(layer.weight.data, layer.weight.quant_state), before)
    assert not any(getattr(m, "support_avx512bf16_for_cpu", False) for m in resident.model.modules())
    assert "bnb_4bit_quant_type=nf4" in resident.notes[0]


@pytest.mark.parametrize("arm", ["base", "tuned"])
def test_nf4_layers_are_dense_on_a_cpu_and_give_the_same_bits(
    arm: str, tiny_llama: Path, tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from lora_eval.models import resident as module

    def opened() -> Resident:
        return open_resident(tiny_llama, {"tuned": tiny_adapter}, dtype="bfloat16", quantization=NF4)

    dense = opened()
    assert any("dequantized weights" in note for note in dense.notes)
    assert not any(
        "4bit" in type(m).__name__ for n, m in dense.model.named_modules() if n.endswith("base_layer")
    )
    monkeypatch.setattr(module, "fits_dense", lambda model: False)
    packed = opened()
    assert not any("dequantized weights" in note for note in packed.notes)
    with dense.activate(arm) as one, packed.activate(arm) as other:
        assert torch.equal(_logits(one), _logits(other))


def test_nf4_layers_of_another_compute_dtype_stay_packed(tiny_llama: Path, tiny_adapter: Path) -> None:
    resident = open_resident(tiny_llama, {"tuned": tiny_adapter}, dtype="float32", quantization=NF4)
    assert _is_4bit(resident.model)


def test_a_folder_of_its_own(tiny_llama: Path) -> None:
    resident = open_folder(tiny_llama, name="merged", dtype="bfloat16")
    assert (resident.arms, resident.dtype, resident.notes) == (("merged",), "bfloat16", ())
    with resident.activate("merged") as model:
        assert _logits(model).shape == (1, 7, 320)
    with pytest.raises(KeyError, match="no arm 'base'"), resident.activate("base"):
        pass


def test_a_layer_that_can_dequantize_becomes_a_plain_one() -> None:
    import torch

    from lora_eval.models.dense import dequantize_for_cpu

    class Packed(torch.nn.Module):
        """As gptqmodel's: integers and scales, dequantized at every forward; weight is (in, out)."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("qweight", torch.randint(-8, 8, (6, 4)))
            self.register_buffer("scales", torch.rand(4))
            self.register_buffer("bias", torch.rand(4))

        def dequantize_weight(self) -> torch.Tensor:
            return self.qweight * self.scales

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.dequantize_weight() + self.bias

    class Model(torch.nn.Module):
        dtype = torch.float32

        def __init__(self) -> None:
            super().__init__()
            self.inside = torch.nn.Sequential(Packed())

    model = Model()
    x = torch.rand(3, 6)
    before = model.inside(x)
    assert dequantize_for_cpu(model) == (
        "1 quantized layers evaluated with their dequantized weights in float32",
    )
    assert type(model.inside[0]) is torch.nn.Linear
    assert torch.allclose(model.inside(x), before, atol=1e-6)
    assert dequantize_for_cpu(model) == ()


def test_what_cannot_be_loaded_is_an_error_of_ours(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="dtype 'int3' is unknown"):
        load_base(tiny_llama, dtype="int3")
    with pytest.raises(ModelError, match="transformers cannot load"):
        load_base(tiny_llama, quantization={"load_in_5bit_please": True, "load_in_4bit": "yes"})
    with pytest.raises(ModelError, match="tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)


def test_package_versions_are_the_installed_ones() -> None:
    import torch

    found = package_versions()
    assert found["torch"] == torch.__version__
    assert {"python", "transformers", "peft", "lora-eval"} <= found.keys()
