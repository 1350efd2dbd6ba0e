"""Every kind of adapter, on tied and untied bases, in 16 bits and NF4: the merge is PEFT's live model.

The reference is computed in float32 on the weights that training saw: PEFT's own merge, equal in every bit
after one rounding, and the logits of the adapter that is not merged. PEFT's merge is wrong where a base ties
its embeddings (https://github.com/huggingface/peft/issues/2018), so there it merges into an untied copy.
"""

from __future__ import annotations

import warnings

import pytest

from lora_eval.export import export
from lora_eval.models.quiet import without_gptqmodel
from lora_eval.records.export import MergeAudit
from lora_eval.schema import read_record
from tests.conftest import save_tiny_llama, save_tiny_tokenizer
from tests.exporters.conftest import QLORA

HEADS = ["lm_head", "q_proj"]
BOTH = ["lm_head", "embed_tokens"]
ROWS = 330  # of a resized vocabulary
# Options of LoraConfig, and how a tied base must come out: tied, or stored apart.
VARIANTS = {
    "lora": ({}, True),
    "rslora": ({"use_rslora": True}, True),
    "patterns": ({"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"down_proj": 32}}, True),
    "dora": ({"use_dora": True}, True),
    "dora-rslora": ({"use_dora": True, "use_rslora": True, "rank_pattern": {"up_proj": 2}}, True),
    "gaussian": ({"init_lora_weights": "gaussian"}, True),
    "orthogonal": ({"init_lora_weights": "orthogonal"}, True),
    "mica": ({"init_lora_weights": "mica"}, True),
    "head": ({"target_modules": HEADS}, False),
    "embedding": ({"target_modules": ["embed_tokens", "q_proj"]}, False),
    "embedding-dora": ({"target_modules": ["embed_tokens"], "use_dora": True}, False),
    "both": ({"target_modules": BOTH}, False),
    "tied-head": ({"target_modules": HEADS, "ensure_weight_tying": True}, True),
    "saved-head": ({"modules_to_save": ["lm_head"]}, False),
    "saved-embedding": ({"modules_to_save": ["embed_tokens"]}, False),
    "saved-both": ({"modules_to_save": BOTH}, False),
    "saved-tied": ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
    "saved-norm": ({"modules_to_save": ["input_layernorm"]}, True),
    "tokens": ({"trainable_token_indices": [0, 5]}, True),
    "tokens-apart": ({"trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [7]}}, False),
    "tokens-under-head": ({"trainable_token_indices": [3, 5], "target_modules": HEADS}, False),
    "resized": ({"resize": True}, True),
    "resized-tokens": ({"resize": True, "trainable_token_indices": [300, 325]}, True),
    "resized-saved": ({"resize": True, "modules_to_save": BOTH}, False),
    "resized-head": ({"resize": True, "target_modules": BOTH}, False),
}
# PEFT changes the shared weight of these twice, or not both layers; only the logits can tell.
NO_PEFT_MERGE = ("tied-head", "saved-tied", "tokens-under-head")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders `tied` and `untied` (bfloat16), and what training saw of them in float32, by quantization."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    folder, seen = tmp_path_factory.mktemp("bases"), {}
    for name in ("tied", "untied"):
        save_tiny_llama(folder / name, tie_word_embeddings=name == "tied", num_hidden_layers=1)
        model = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.bfloat16)
        model.save_pretrained(folder / name)
        seen[name, "bf16"] = {key: value.float() for key, value in model.state_dict().items()}
        config = BitsAndBytesConfig(**QLORA)
        model = AutoModelForCausalLM.from_pretrained(
            folder / name, dtype=torch.bfloat16, quantization_config=config, device_map={"": "cpu"}
        ).dequantize()
        seen[name, "nf4"] = {key: value.float() for key, value in model.state_dict().items()}
    return folder, seen


def as_trained(bases, name, quantization, *, tied=None, rows=None):
    """Return the base in float32 with the weights that training saw."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder, seen = bases
    config = AutoConfig.from_pretrained(folder / name)
    config.tie_word_embeddings = config.tie_word_embeddings if tied is None else tied
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(seen[name, quantization])
    model.config._name_or_path = str(folder / name)
    if rows:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model.resize_token_embeddings(rows, mean_resizing=False)
        with torch.no_grad():
            for module in (model.get_input_embeddings(), model.get_output_embeddings()):
                module.weight.copy_(module.weight.bfloat16())
    return model.eval()


def save_adapter(model, folder, **options):
    """Save an adapter of the model whose every trained value is random, and a bfloat16 number."""
    import torch
    from peft import LoraConfig, get_peft_model

    values = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    generator = torch.Generator().manual_seed(1)
    with without_gptqmodel(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = get_peft_model(model, LoraConfig(**(values | options)))
        with torch.no_grad():
            for name, parameter in peft.named_parameters():
                if parameter.requires_grad and "base_layer" not in name:
                    noise = torch.randn(parameter.shape, generator=generator) * 0.1
                    fresh = (
                        noise
                        if "lora_A" in name or "lora_B" in name or "embedding" in name
                        else parameter + noise
                    )
                    parameter.copy_(fresh.bfloat16().float())
        peft.save_pretrained(folder)


def attach(model, folder):
    from peft import PeftModel

    with without_gptqmodel(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model, folder).eval()


def logits(model):
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor([[3, 5, 7, 65, 66, 200, 257, 1]])).logits


def load(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("quantization", ["bf16", "nf4"])
@pytest.mark.parametrize("name", ["tied", "untied"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_merge_is_the_live_model(bases, tmp_path, variant, name, quantization):
    """In float32; in 16 bits it is that, rounded once."""
    import torch

    options, stays_tied = VARIANTS[variant]
    options = dict(options)
    rows = ROWS if options.pop("resize", False) else None
    if variant in NO_PEFT_MERGE and name == "untied":
        pytest.skip("nothing is tied")
    save_adapter(as_trained(bases, name, quantization, rows=rows), tmp_path / "adapter", **options)
    quantize = {"quantize": "nf4"} if quantization == "nf4" else {"onto": "original"}
    export("merge", base=bases[0] / name, adapter=tmp_path / "adapter", out=tmp_path / "out",
           options={"dtype": "float32", **quantize})  # fmt: skip
    merged = load(tmp_path / "out")
    live = attach(as_trained(bases, name, quantization, rows=rows), tmp_path / "adapter")
    assert (logits(merged) - logits(live)).abs().max() < 1e-4
    assert merged.config.tie_word_embeddings == (name == "tied" and stays_tied)
    assert merged.get_input_embeddings().weight.shape[0] == (rows or 320)
    if variant not in NO_PEFT_MERGE:
        if name == "tied" and not stays_tied:
            apart = as_trained(bases, name, quantization, tied=False, rows=rows)
            live = attach(apart, tmp_path / "adapter")
        assert_equal(merged.state_dict(), live.merge_and_unload().state_dict())
    for dtype in ("bfloat16", "float16"):
        export("merge", base=bases[0] / name, adapter=tmp_path / "adapter", out=tmp_path / dtype,
               options={"dtype": dtype, **quantize})  # fmt: skip
        rounded = {key: value.to(getattr(torch, dtype)) for key, value in merged.state_dict().items()}
        assert_equal(load(tmp_path / dtype).state_dict(), rounded)
    audit = read_record(tmp_path / "out" / "audit.json", MergeAudit)
    assert all(row.applied in (1, None) for row in audit.tensors)
    assert any("share one weight" in note for note in audit.notes) == (name == "tied" and not stays_tied)
    assert any("resized" in note for note in audit.notes) == (rows is not None)


def assert_equal(found, expected):
    import torch

    assert found.keys() == expected.keys()
    assert not [key for key in found if found[key].dtype != expected[key].dtype]
    assert not [key for key in found if not torch.equal(found[key], expected[key])]


@pytest.mark.parametrize(
    ("initial", "quantization"), [("pissa", "bf16"), ("olora", "bf16"), ("olora", "nf4")]
)
@pytest.mark.parametrize("rslora", [True, False])
def test_a_base_that_training_began_by_changing(bases, tmp_path, initial, quantization, rslora):
    """PEFT repeats the beginning on loading; the sum is of the weights that this leaves, and B @ A."""
    import torch
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from lora_eval.models.dense import dequantized_nf4

    base = bases[0] / "tied"
    options = {"init_lora_weights": initial, "target_modules": ["q_proj", "up_proj"], "use_rslora": rslora}
    save_adapter(as_trained(bases, "tied", quantization), tmp_path / "adapter", **options)
    loading = {"quantization_config": BitsAndBytesConfig(**QLORA)} if quantization == "nf4" else {}
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, device_map={"": "cpu"}, **loading
    )
    live = attach(model, tmp_path / "adapter")
    quantize = {"quantize": "nf4"} if quantization == "nf4" else {"onto": "original"}
    export("merge", base=base, adapter=tmp_path / "adapter", out=tmp_path / "out",
           options={"dtype": "float32", **quantize})  # fmt: skip
    found = load(tmp_path / "out").state_dict()
    layers = {n: m for n, m in live.get_base_model().named_modules() if isinstance(m, LoraLayer)}
    assert len(layers) == 2
    for name, layer in layers.items():
        frozen = layer.get_base_layer()
        weight = dequantized_nf4(frozen) if quantization == "nf4" else frozen.weight
        assert torch.equal(found[f"{name}.weight"], weight.float() + layer.get_delta_weight("default"))
        stored = bases[1]["tied", quantization][f"{name}.weight"]
        assert (stored - weight.float()).norm() > 0.1 * stored.norm()  # and it did change


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True, "rank_pattern": {"c_attn": 2}},
        {"init_lora_weights": "pissa"},
        {"target_modules": ["c_attn"], "modules_to_save": ["c_proj"]},
        {"target_modules": ["c_attn", "wte"]},
        {"target_modules": ["c_attn"], "lora_bias": True},
        {"target_modules": ["c_attn"], "bias": "all"},
        {"target_modules": ["c_attn"], "bias": "lora_only"},
    ],
    ids=str,
)
def test_weights_stored_transposed_and_biases(tmp_path, options):
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=320, n_positions=64, n_embd=64, n_layer=1, n_head=2, bos_token_id=257,
                        eos_token_id=257, attn_implementation="eager")  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    save_tiny_tokenizer(tmp_path / "base")
    given = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True} | options
    save_adapter(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter", **given)
    export("merge", base=tmp_path / "base", adapter=tmp_path / "adapter", out=tmp_path / "out")
    live = attach(AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval(), tmp_path / "adapter")
    merged = load(tmp_path / "out")
    assert (logits(merged) - logits(live)).abs().max() < 1e-4
    if "wte" in given["target_modules"]:
        assert not torch.equal(merged.transformer.wte.weight, merged.lm_head.weight)
    else:
        assert_equal(merged.state_dict(), live.merge_and_unload().state_dict())
