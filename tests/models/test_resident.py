"""One copy of the base for all arms; switching an adapter off gives exactly the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lora_eval.errors import ModelError
from lora_eval.models import (
    IDENTITY,
    Resident,
    load_base,
    load_tokenizer,
    open_adapter,
    open_folder,
    open_resident,
    package_versions,
)
from tests.conftest import save_tiny_adapter, save_tiny_llama, save_tiny_tokenizer

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


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantization", [None, NF4])
def test_a_resized_vocabulary_comes_from_the_adapter(
    tied: bool, quantization: dict | None, tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel

    save_tiny_llama(tmp_path / "base", tie_word_embeddings=tied)
    grown = load_base(tmp_path / "base")
    grown.resize_token_embeddings(330, mean_resizing=False)
    grown.save_pretrained(tmp_path / "grown")
    ends = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    options = {"modules_to_save": ends, "target_modules": ["q_proj"], "ensure_weight_tying": tied}
    save_tiny_adapter(tmp_path / "grown", tmp_path / "adapter", **options)
    save_tiny_tokenizer(tmp_path / "adapter", chat_template="{{ 'its own' }}")
    resident = open_adapter(tmp_path / "base", tmp_path / "adapter", name="arm", quantization=quantization)
    live = PeftModel.from_pretrained(
        load_base(tmp_path / "grown", quantization=quantization), tmp_path / "adapter"
    ).eval()
    with resident.activate("arm") as model:
        assert torch.equal(_logits(model), _logits(live))
        assert _logits(model).shape[-1] == 330
    assert resident.tokenizer.chat_template == "{{ 'its own' }}"
    assert "a vocabulary of 330 rows" in resident.notes[0]


def test_a_vocabulary_that_was_resized_at_one_end_only_is_refused(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "base", tie_word_embeddings=False)
    grown = load_base(tmp_path / "base")
    grown.resize_token_embeddings(330, mean_resizing=False)
    grown.save_pretrained(tmp_path / "grown")
    options = {"modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"]}
    save_tiny_adapter(tmp_path / "grown", tmp_path / "adapter", **options)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if "lm_head" not in name}
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"330 rows for model.embed_tokens and none for lm_head"):
        open_adapter(tmp_path / "base", tmp_path / "adapter", name="arm")


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


@pytest.fixture(scope="module", params=["pissa", "olora"])
def changing(
    request: pytest.FixtureRequest, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """An adapter that changes the base's weights, trained a little: its folder, and the live logits."""
    import torch
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("changing") / request.param
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=request.param
    )
    live = get_peft_model(load_base(tiny_llama), config)
    optimizer = torch.optim.SGD([p for p in live.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        ids = torch.tensor(IDS)
        live(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    live.save_pretrained(folder)
    return folder, _logits(live)


def test_an_adapter_that_changes_the_base_is_exactly_itself_on_its_own_copy(
    tiny_llama: Path, changing: tuple[Path, Any]
) -> None:
    import torch

    folder, live = changing
    resident = open_adapter(tiny_llama, folder, name="tuned")
    assert (resident.arms, resident.every_arm) == (("tuned",), ("tuned",))
    with resident.activate("tuned") as model:
        assert torch.equal(_logits(model), live)
    # Why it may not share the base: switched off, it does not give the base back.
    with resident._peft.disable_adapter():
        off = _logits(resident.model)
    assert (off - _logits(load_base(tiny_llama))).abs().max() > 1
    assert "measured on a copy of its own" in resident.notes[0]


def test_an_adapter_that_changes_the_base_cannot_share_it(
    tiny_llama: Path, tiny_adapter: Path, changing: tuple[Path, Any]
) -> None:
    with pytest.raises(ModelError, match="cannot share them with other arms"):
        open_resident(tiny_llama, {"one": tiny_adapter, "two": changing[0]})


def test_pissa_on_a_quantized_base_is_told_and_olora_is_requantized(
    tiny_llama: Path, changing: tuple[Path, Any]
) -> None:
    """PEFT cannot start PiSSA on four bits; OLoRA quantizes the rest anew, each time alike."""
    import torch

    folder, _ = changing
    if folder.name == "pissa":
        with pytest.raises(ModelError, match="PEFT cannot load this adapter: Please initialize PiSSA"):
            open_adapter(tiny_llama, folder, name="tuned", quantization=NF4)
        return
    both = [open_adapter(tiny_llama, folder, name="tuned", quantization=NF4) for _ in range(2)]
    with both[0].activate("tuned") as one, both[1].activate("tuned") as other:
        assert torch.equal(_logits(one), _logits(other))


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
