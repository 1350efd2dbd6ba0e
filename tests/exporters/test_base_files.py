"""A base needs an index and every tensor; what the model keeps in float32 stays so."""

from __future__ import annotations

import json
import shutil

import pytest

from lora_eval.errors import ModelError
from lora_eval.export import export
from lora_eval.exporters.base_files import open_base
from lora_eval.models.quiet import without_gptqmodel
from tests.conftest import save_tiny_adapter, save_tiny_tokenizer

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tiny_llama, tmp_path):
    """A copy of the tiny Llama in several files."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "base"
    shutil.copytree(tiny_llama, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(folder, max_shard_size="100KB")
    return folder


def without(path, *names):
    """Take tensors out of a file."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    save_file({name: t for name, t in tensors.items() if name not in names}, path, {"format": "pt"})
    assert set(names) < tensors.keys()


def test_files_that_no_index_ties_together_are_refused(sharded):
    (sharded / INDEX).unlink()
    with pytest.raises(ModelError, match=rf"holds model-00001-of-0000\d.safetensors and no {INDEX}"):
        open_base(sharded, None)


def test_a_tensor_that_the_index_names_and_no_file_holds(sharded):
    weight_map = json.loads((sharded / INDEX).read_text())["weight_map"]
    name = "model.layers.1.mlp.up_proj.weight"
    without(sharded / weight_map[name], name)
    with pytest.raises(ModelError, match=f"{INDEX}: names 1 tensors that no file holds, first {name}"):
        open_base(sharded, None)


@pytest.mark.parametrize("quantization", [None, {"load_in_4bit": True}], ids=["16-bit", "nf4"])
def test_every_tensor_of_the_model_must_be_there(tiny_llama, tmp_path, quantization):
    """transformers would draw it at random, and the merge would lack it."""
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    without(base / "model.safetensors", "model.norm.weight", "model.layers.1.mlp.up_proj.weight")
    said = r"no file holds model.layers.1.mlp.up_proj.weight, model.norm.weight, which"
    with pytest.raises(ModelError, match=said):
        open_base(base, quantization)


def test_a_tied_head_needs_no_tensor_of_its_own_and_an_untied_one_does(tiny_llama, tmp_path):
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    assert "lm_head.weight" not in open_base(base, None).parameters
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(ModelError, match=r"no file holds lm_head.weight"):
        open_base(base, None)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("onto", ["original", "trained"])
def test_what_a_model_keeps_in_float32_is_not_rounded(tmp_path, onto, dtype):
    """The bias by which GLM-4-MoE chooses experts; its experts' tensors have other names in the files."""
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, Glm4MoeConfig, Glm4MoeForCausalLM

    config = Glm4MoeConfig(vocab_size=320, hidden_size=64, intermediate_size=128, moe_intermediate_size=32,
                           num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
                           n_routed_experts=4, num_experts_per_tok=2, first_k_dense_replace=1,
                           eos_token_id=257, pad_token_id=258, bos_token_id=None)  # fmt: skip
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Glm4MoeForCausalLM(config).save_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        name = "model.layers.1.mlp.gate.e_score_correction_bias"
        bias = model.state_dict()[name]
        bias.copy_(torch.randn(4))
    model.save_pretrained(base)
    save_tiny_tokenizer(base)
    with without_gptqmodel():
        save_tiny_adapter(base, adapter, target_modules=["q_proj", "o_proj"])
    quantize = {"quantize": "nf4"} if onto == "trained" else {}
    export("merge", base=base, adapter=adapter, out=out, options={"dtype": dtype, "onto": onto, **quantize})
    assert torch.equal(load_file(out / "model.safetensors")[name], bias)
    if (onto, dtype) == ("original", "bfloat16"):
        found = AutoModelForCausalLM.from_pretrained(out).state_dict()
        with without_gptqmodel():
            expected = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
        assert found.keys() == expected.keys()
        assert not [key for key in found if not torch.equal(found[key], expected[key])]
