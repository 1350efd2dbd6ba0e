"""What a merge makes of layers that share a weight, and which changes no tensor of the base can take."""

from __future__ import annotations

import json

import pytest

from lora_eval.errors import ModelError
from lora_eval.export import export
from tests.conftest import save_tiny_tokenizer
from tests.exporters.test_merge_variants import BOTH, as_trained, attach, bases, load, logits, save_adapter

__all__ = ["bases"]
PREFIX = "base_model.model."
EMBEDDING = f"{PREFIX}model.embed_tokens.lora_embedding_"


def edited(adapter, change=lambda tensors: None, **config):
    """Change an adapter's tensors and configuration in place."""
    from safetensors.torch import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))


def merge(bases, tmp_path, name="tied", **options):
    given = {"dtype": "float32", "onto": "original"} | options
    export("merge", base=bases[0] / name, adapter=tmp_path / "adapter", out=tmp_path / "out", options=given)
    return load(tmp_path / "out")


@pytest.mark.parametrize(
    ("a", "b", "alpha", "dora", "tied"),
    [
        (1, 1, 8, False, True),
        (2, 1, 8, False, False),
        (1, 2, 8, False, False),
        (1, 1, 3, False, False),
        (1, 1, 8, True, False),
    ],
)
def test_one_change_on_both_layers_of_a_weight_keeps_them_tied(bases, tmp_path, a, b, alpha, dora, tied):
    """The head has the embedding's matrices, times `a` and `b`, and an alpha of its own; with DoRA one has
    lengths of rows, the other of columns.
    """

    def change(tensors):
        tensors[f"{PREFIX}lm_head.lora_A.weight"] = a * tensors[f"{EMBEDDING}B"].T
        tensors[f"{PREFIX}lm_head.lora_B.weight"] = b * tensors[f"{EMBEDDING}A"].T

    options = {"target_modules": BOTH, "use_dora": dora}
    save_adapter(as_trained(bases, "tied", "bf16"), tmp_path / "adapter", **options)
    edited(tmp_path / "adapter", change, alpha_pattern={"lm_head": alpha})
    merged = merge(bases, tmp_path)
    assert merged.config.tie_word_embeddings == tied
    live = attach(as_trained(bases, "tied", "bf16"), tmp_path / "adapter")
    assert (logits(merged) - logits(live)).abs().max() < 1e-4


def test_a_token_behind_the_last_row_is_named(bases, tmp_path):
    save_adapter(as_trained(bases, "tied", "bf16"), tmp_path / "adapter", trainable_token_indices=[3, 319])
    merge(bases, tmp_path)
    edited(tmp_path / "adapter", trainable_token_indices=[3, 320])
    with pytest.raises(ModelError, match="embed_tokens: token 320 was trained, the base has 320 rows"):
        export("merge", base=bases[0] / "tied", adapter=tmp_path / "adapter", out=tmp_path / "other")


def test_tokens_that_the_configuration_counts_otherwise_than_the_weights(bases, tmp_path):
    save_adapter(as_trained(bases, "tied", "bf16"), tmp_path / "adapter", trainable_token_indices=[3, 5])
    edited(tmp_path / "adapter", trainable_token_indices=[3])
    with pytest.raises(ModelError, match=r"names 1 tokens for model.embed_tokens, the weights hold 2"):
        merge(bases, tmp_path)


@pytest.mark.parametrize("module", ["lm_head", "embed_tokens"])
def test_a_beginning_that_changes_a_weight_which_two_layers_share(bases, tmp_path, module):
    options = {"init_lora_weights": "olora", "target_modules": [module]}
    save_adapter(as_trained(bases, "tied", "bf16"), tmp_path / "adapter", **options)
    with pytest.raises(ModelError, match=f"{module}: init_lora_weights 'olora' on a tied layer or embedding"):
        merge(bases, tmp_path)


def test_weights_saved_whole_in_another_shape(bases, tmp_path):
    """Only the vocabulary can have grown in training."""
    import torch

    def change(tensors):
        tensors[f"{PREFIX}model.layers.0.mlp.down_proj.weight"] = torch.zeros(65, 128)
        tensors[f"{PREFIX}model.norm.weight"] = torch.zeros(65)
        tensors[f"{PREFIX}model.nothing.bias"] = torch.zeros(3)

    save_adapter(as_trained(bases, "untied", "bf16"), tmp_path / "adapter", target_modules=["q_proj"])
    edited(tmp_path / "adapter", change)
    with pytest.raises(ModelError) as caught:
        merge(bases, tmp_path, "untied")
    said = str(caught.value)
    assert "model.layers.0.mlp.down_proj is [65, 128] in the adapter and [64, 128] in the base" in said
    assert "model.norm is [65] in the adapter and [64] in the base" in said
    assert "model.nothing.bias is saved whole, and the base has no such parameter" in said


def test_a_quantized_layer_saved_whole_beside_its_lora(bases, tmp_path):
    import torch

    def change(tensors):
        tensors[f"{PREFIX}model.layers.0.mlp.down_proj.base_layer.weight"] = torch.zeros(64, 128)

    save_adapter(as_trained(bases, "untied", "nf4"), tmp_path / "adapter", target_modules=["down_proj"])
    edited(tmp_path / "adapter", change)
    with pytest.raises(ModelError, match="down_proj is quantized in the base and saved whole"):
        merge(bases, tmp_path, "untied", onto="trained", quantize="nf4")


def test_a_bias_in_b_needs_a_bias_to_add_it_to(bases, tmp_path):
    options = {"target_modules": ["q_proj"], "lora_bias": True}
    save_adapter(as_trained(bases, "untied", "bf16"), tmp_path / "adapter", **options)
    with pytest.raises(ModelError, match="q_proj: lora_B has a bias, the base's layer none to add it to"):
        merge(bases, tmp_path, "untied")


def test_the_bias_of_a_head_grows_with_the_vocabulary(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, PhiConfig, PhiForCausalLM

    config = PhiConfig(vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=1,
                       num_attention_heads=2, bos_token_id=256, eos_token_id=257)  # fmt: skip
    PhiForCausalLM(config).save_pretrained(tmp_path / "base")
    save_tiny_tokenizer(tmp_path / "base")

    def resized():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
            model.resize_token_embeddings(330, mean_resizing=False)
        return model

    save_adapter(resized(), tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=BOTH)
    export("merge", base=tmp_path / "base", adapter=tmp_path / "adapter", out=tmp_path / "out")
    merged, live = load(tmp_path / "out"), attach(resized(), tmp_path / "adapter")
    assert merged.lm_head.bias.shape == (330,)
    assert (logits(merged) - logits(live)).abs().max() < 1e-4


def test_tokens_that_were_added_fit_the_resized_vocabulary(bases, tmp_path):
    from transformers import AutoTokenizer

    from tests.exporters.test_merge_variants import ROWS

    save_adapter(
        as_trained(bases, "tied", "bf16", rows=ROWS), tmp_path / "adapter", target_modules=["q_proj"]
    )
    tokenizer = AutoTokenizer.from_pretrained(bases[0] / "tied")
    tokenizer.add_tokens([f"<new{number}>" for number in range(ROWS - len(tokenizer))])
    tokenizer.save_pretrained(tmp_path / "adapter")
    merged = merge(bases, tmp_path)
    assert merged.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path / "out")) == ROWS
