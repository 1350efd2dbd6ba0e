"""In which dtype a merge takes the weights, and in which it writes them."""

from __future__ import annotations

import json
import shutil

import pytest

from lora_eval.errors import ModelError
from lora_eval.fingerprint import fingerprint_folder
from lora_eval.models import write_lineage
from lora_eval.models.quiet import without_gptqmodel
from lora_eval.records import Lineage, Variant
from tests.conftest import save_tiny_llama
from tests.exporters.conftest import QLORA
from tests.exporters.test_merge import assert_equal, dequantized, load, merge, peft_merge, save_tiny_adapter


def save_lineage(folder, quantization):
    """Say that the folder's adapter was trained on its base, loaded in bfloat16."""
    base = Variant(kind="base", path="base", fingerprint=fingerprint_folder(folder / "base"))
    lineage = Lineage(variants=(base,), quantization=quantization, base_dtype="bfloat16")
    write_lineage(folder / "adapter", lineage)


@pytest.mark.parametrize("quantization", [None, QLORA], ids=["16-bit", "nf4"])
@pytest.mark.parametrize(
    "options",
    [{}, {"use_dora": True, "modules_to_save": ["norm"]}, {"trainable_token_indices": [0, 7]}],
    ids=["lora", "dora", "tokens"],
)
def test_weights_are_those_that_training_loaded(tmp_path, quantization, options):
    """A base stored in float32 that training loaded in bfloat16, written in float32: no bit is added."""
    import torch
    from safetensors.torch import load_file, save_file

    save_tiny_llama(tmp_path / "base")
    save_tiny_adapter(tmp_path / "base", tmp_path / "adapter", **options)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    generator = torch.Generator().manual_seed(3)
    save_file(
        {
            name: tensor if "lora" in name else tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in load_file(path).items()
        },
        path,
    )
    save_lineage(tmp_path, quantization)
    merge(tmp_path, tmp_path / "out", onto="trained")
    loaded = (
        load(tmp_path / "base", dtype=torch.bfloat16)
        if quantization is None
        else dequantized(tmp_path / "base", quantization, "bfloat16")
    )
    found = load(tmp_path / "out")
    assert found.dtype == torch.float32
    expected = peft_merge(loaded.float(), tmp_path / "adapter")
    for name in expected:
        if "proj" not in name:  # saved whole, or rows of it, and used in the dtype of the base
            expected[name] = expected[name].bfloat16().float()
    assert_equal(found.state_dict(), expected)


def test_onto_original_takes_no_dtype_from_training(tmp_path):
    save_tiny_llama(tmp_path / "base")
    save_tiny_adapter(tmp_path / "base", tmp_path / "adapter")
    save_lineage(tmp_path, QLORA)
    merge(tmp_path, tmp_path / "out", onto="original")
    assert_equal(
        load(tmp_path / "out").state_dict(), peft_merge(load(tmp_path / "base"), tmp_path / "adapter")
    )


@pytest.mark.parametrize(
    ("config", "dtype"),
    [({"dtype": "float32"}, "float32"), ({"torch_dtype": "float16"}, "float16"), ({}, "bfloat16")],
)
def test_the_dtype_is_that_of_the_config_else_that_of_most_tensors(qlora, tmp_path, config, dtype):
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(qlora / "base", tmp_path / "base")
    path = base / "model.safetensors"
    first = min(load_file(path))
    save_file({name: t.float() if name == first else t for name, t in load_file(path).items()}, path)
    file = base / "config.json"
    data = json.loads(file.read_text())
    data.pop("dtype")
    file.write_text(json.dumps(data | config))
    shutil.copytree(qlora / "adapter", tmp_path / "adapter", ignore=shutil.ignore_patterns("lineage.json"))
    merge(tmp_path, tmp_path / "out", onto="original")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["dtype"], "torch_dtype" in written) == (dtype, False)
    tensors = load_file(tmp_path / "out" / "model.safetensors").values()
    assert {str(tensor.dtype) for tensor in tensors} == {f"torch.{dtype}"}


def test_a_beginning_is_repeated_on_the_weights_that_training_loaded(tmp_path):
    """OLoRA takes its first matrices out of the weights in bfloat16, not of those stored in float32."""
    import torch
    from peft import PeftModel

    save_tiny_llama(tmp_path / "base", num_hidden_layers=1)
    options = {"target_modules": ["q_proj"], "init_lora_weights": "olora"}
    save_tiny_adapter(tmp_path / "base", tmp_path / "adapter", **options)
    save_lineage(tmp_path, None)
    merge(tmp_path, tmp_path / "out", onto="trained")
    with without_gptqmodel():
        live = PeftModel.from_pretrained(load(tmp_path / "base", dtype=torch.bfloat16), tmp_path / "adapter")
    layer = live.base_model.model.model.layers[0].self_attn.q_proj
    expected = layer.base_layer.weight.float() + layer.get_delta_weight("default").float()
    assert torch.equal(load(tmp_path / "out").model.layers[0].self_attn.q_proj.weight, expected)


def test_a_value_of_the_base_beyond_float16_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    save_tiny_llama(tmp_path / "base", num_hidden_layers=1)
    save_tiny_adapter(tmp_path / "base", tmp_path / "adapter", target_modules=["q_proj"])
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][5] = 1e5
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(
        ModelError, match=r"model.norm.weight: .* not finite in float16; use --dtype bfloat16"
    ):
        merge(tmp_path, tmp_path / "out", dtype="float16")
