"""A base needs an index and every tensor; what the model keeps in float32 stays so."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

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


def test_a_single_file_needs_no_index_and_minds_none(sharded, tiny_llama):
    for path in sharded.glob("*.safetensors"):
        path.unlink()
    shutil.copyfile(tiny_llama / "model.safetensors", sharded / "model.safetensors")
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["of.an.older.save"] = "model-00001-of-00002.safetensors"
    (sharded / INDEX).write_text(json.dumps(index))
    assert len(open_base(sharded, None).shards) == 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "of_tomorrow"}, r"base: transformers cannot read config.json: .*of_tomorrow"),
        (
            {"num_attention_heads": "two"},
            r"cannot read config.json: .*num_attention_heads",
        ),
        ({"model_type": "t5"}, "base: transformers cannot build this model"),
        (
            {"intermediate_size": 96},
            r"gate_proj.weight has shape \[128, 64\], the model's model.layers.0.mlp.gate_proj \[96, 64\]",
        ),
    ],
)
def test_a_configuration_of_another_model(tiny_llama, tmp_path, values, said):
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | values))
    with pytest.raises(ModelError, match=said):
        open_base(base, None)


def test_a_checkpoint_of_the_bare_model_keeps_its_names(tmp_path):
    """As GPT-2's on the Hub: `h.0.attn...` without `transformer.` before it; a head never had that."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    config = GPT2Config(vocab_size=320, n_positions=64, n_embd=64, n_layer=1, n_head=2, bos_token_id=257,
                        eos_token_id=257)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(base)
    save_tiny_tokenizer(base)
    path = base / "model.safetensors"
    bare = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    save_file(bare, path, {"format": "pt"})
    with without_gptqmodel():
        save_tiny_adapter(base, adapter, target_modules=["c_attn", "wte"], fan_in_fan_out=True)
    export("merge", base=base, adapter=adapter, out=out)
    assert load_file(out / "model.safetensors").keys() == bare.keys() | {"lm_head.weight"}
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(merged.lm_head.weight, bare["wte.weight"])
    assert not torch.equal(merged.transformer.wte.weight, bare["wte.weight"])
    assert not torch.equal(merged.transformer.h[0].attn.c_attn.weight, bare["h.0.attn.c_attn.weight"])


BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"


def save_experts(base):
    """Write a tiny GLM-4-MoE in bfloat16, and return it: the bias by which it chooses experts stays in
    float32, and its experts' tensors have other names in the files.
    """
    import torch
    from transformers import AutoModelForCausalLM, Glm4MoeConfig, Glm4MoeForCausalLM

    config = Glm4MoeConfig(vocab_size=320, hidden_size=64, intermediate_size=128, moe_intermediate_size=32,
                           num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
                           n_routed_experts=4, num_experts_per_tok=2, first_k_dense_replace=1,
                           eos_token_id=257, pad_token_id=258, bos_token_id=None)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Glm4MoeForCausalLM(config).save_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        model.state_dict()[BIAS].copy_(torch.randn(4))
    model.save_pretrained(base)
    save_tiny_tokenizer(base)
    return model


def test_a_layer_that_training_quantized_must_be_there_under_the_models_own_name(tmp_path):
    save_experts(tmp_path)
    without(tmp_path / "model.safetensors", "model.layers.0.self_attn.q_proj.weight")
    with pytest.raises(ModelError, match=r"no tensor holds model.layers.0.self_attn.q_proj.weight"):
        open_base(tmp_path, {"load_in_4bit": True})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("onto", ["original", "trained"])
def test_what_a_model_keeps_in_float32_is_not_rounded(tmp_path, onto, dtype):
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    model = save_experts(base)
    with without_gptqmodel():
        save_tiny_adapter(base, adapter, target_modules=["q_proj", "o_proj"])
    quantize = {"quantize": "nf4"} if onto == "trained" else {}
    export("merge", base=base, adapter=adapter, out=out, options={"dtype": dtype, "onto": onto, **quantize})
    assert torch.equal(load_file(out / "model.safetensors")[BIAS], model.state_dict()[BIAS])
    if (onto, dtype) == ("original", "bfloat16"):
        found = AutoModelForCausalLM.from_pretrained(out).state_dict()
        with without_gptqmodel():
            expected = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
        assert found.keys() == expected.keys()
        assert not [key for key in found if not torch.equal(found[key], expected[key])]


def test_only_what_does_not_change_and_is_stored_in_float32_is_copied_so(tiny_llama, tiny_adapter, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    from lora_eval.exporters.lora import Adapter
    from lora_eval.exporters.plan import make_plan

    save_experts(tmp_path / "experts")
    assert open_base(tmp_path / "experts", None).wide == {BIAS}
    path = tmp_path / "experts" / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    assert open_base(tmp_path / "experts", None).wide == frozenset()

    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.model.norm.weight": torch.full((64,), 2.0)}, path)
    kept = frozenset({"model.norm.weight", "model.layers.0.input_layernorm.weight"})
    base = replace(open_base(tiny_llama, None), wide=kept)
    for given, left in ((None, kept), (Adapter(adapter), kept - {"model.norm.weight"})):
        (outputs,) = make_plan(base, given).shards.values()
        assert {output.name for output in outputs if not output.info.is_floating} == left
