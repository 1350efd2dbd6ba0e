"""An adapter's configuration and weights must say the same."""

from __future__ import annotations

import json
import shutil

import pytest

from lora_eval.errors import ModelError
from lora_eval.exporters.lora import Adapter

MODULE = "base_model.model.model.layers.0.mlp.up_proj"


@pytest.fixture
def changed(tiny_adapter, tmp_path):
    """`changed(tensors, **config)` copies the tiny adapter (rank 4) with other tensors and settings."""
    from safetensors.torch import load_file, save_file

    def call(tensors, **config):
        folder = shutil.copytree(tiny_adapter, tmp_path / "adapter")
        path = folder / "adapter_model.safetensors"
        save_file(load_file(path) | {f"{MODULE}.{part}": tensor for part, tensor in tensors.items()}, path)
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
        return folder

    return call


@pytest.mark.parametrize(
    ("shapes", "config", "said"),
    [
        ({"lora_B.weight": (128, 3)}, {}, "up_proj rank 4, its weights have 3 and 4; copy"),
        ({"lora_A.weight": (8, 64)}, {}, "up_proj rank 4, its weights have 4 and 8; copy"),
        ({}, {"rank_pattern": {"up_proj": 5}}, "up_proj rank 5, its weights have 4; copy"),
        ({"lora_magnitude_vector": (128,)}, {}, "has no use_dora, model.layers.0.mlp.up_proj a magnitude"),
        ({"lora_vector": (128,)}, {}, "up_proj.lora_vector', which is no part of a LoRA"),
    ],
)
def test_what_does_not_agree_is_named(changed, shapes, config, said):
    import torch

    with pytest.raises(ModelError, match=said):
        Adapter(changed({part: torch.ones(shape) for part, shape in shapes.items()}, **config))


def test_each_layer_has_the_first_pattern_that_fits_as_peft_reads_them(changed):
    """Keys are regular expressions from a dot on; PEFT takes the first of them."""
    pattern = {r"layers\.0\..*": 6, "up_proj": 12, "^model.layers.1.mlp.down_proj": 20, "proj": 40}
    adapter = Adapter(changed({}, alpha_pattern=pattern, use_rslora=True))
    alphas = {module: edit.lora.alpha for module, edit in adapter.edits.items()}
    assert alphas["model.layers.0.mlp.up_proj"] == 6
    assert alphas["model.layers.1.mlp.up_proj"] == 12
    assert alphas["model.layers.1.mlp.down_proj"] == 20
    assert alphas["model.layers.1.self_attn.q_proj"] == 8
    assert adapter.edits["model.layers.1.mlp.up_proj"].lora.scaling == 12 / 2
