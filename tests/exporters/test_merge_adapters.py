"""Adapters that no merge can take say what is wrong with them."""

from __future__ import annotations

import shutil

import pytest

from lora_eval.errors import ModelError
from lora_eval.export import export
from tests.exporters.test_merge import change


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"r": None}, "r is None; expected a whole number above 0; save"),
        ({"r": 4.5, "lora_alpha": "8"}, "r is 4.5; expected a whole number above 0; lora_alpha is '8'"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\['q_proj'\] is 0; expected a whole number above 0"),
        ({"alpha_pattern": ["q_proj"]}, r"alpha_pattern is \['q_proj'\]; expected numbers by layer"),
    ],
)
def test_ranks_and_alphas_that_are_none_are_named(qlora, tmp_path, values, said):
    change(qlora / "adapter", tmp_path / "adapter", "adapter_config.json", **values)
    with pytest.raises(ModelError, match=said):
        export("merge", base=qlora / "base", adapter=tmp_path / "adapter", out=tmp_path / "out")


def test_an_adapter_that_is_no_safetensors_or_empty(qlora, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(qlora / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({}, path)
    with pytest.raises(ModelError, match=r"adapter_model.safetensors: holds no tensor"):
        merge_onto(qlora, tmp_path)
    path.unlink()
    torch.save(tensors, path.with_suffix(".bin"))
    with pytest.raises(ModelError, match=r"adapter_model.bin: only safetensors .* save_pretrained it"):
        merge_onto(qlora, tmp_path)


def test_an_adapter_with_a_value_that_is_no_number(qlora, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(qlora / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"][5, 1] = float("nan")
    save_file(tensors, path)
    said = r"layers.1.mlp.up_proj.weight: .* not finite in bfloat16, so the base or the adapter does"
    with pytest.raises(ModelError, match=said):
        merge_onto(qlora, tmp_path)


def merge_onto(qlora, folder):
    export("merge", base=qlora / "base", adapter=folder / "adapter", out=folder / "out")
