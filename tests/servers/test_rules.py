"""Names, ranks, layers and shapes; which base an adapter was trained on."""

from __future__ import annotations

import json

import pytest

from lora_eval.export import export
from lora_eval.fingerprint import fingerprint_folder
from lora_eval.models import write_lineage
from lora_eval.records import Lineage, Variant
from tests.conftest import save_tiny_llama
from tests.servers.conftest import QKV, SERVERS, ask, edit_json, of_rule

NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}


@pytest.fixture(scope="module")
def other_base(tmp_path_factory):
    """`other_base(num_hidden_layers=4)` saves another tiny Llama."""

    def make(**config):
        folder = tmp_path_factory.mktemp("others") / "base"
        save_tiny_llama(folder, **config)
        return folder

    return make


def trained_on(adapter, base, quantization=None):
    """Write the lineage that training leaves."""
    given = fingerprint_folder(base)
    variants = (
        Variant(kind="base", path=str(base), fingerprint=given),
        Variant(kind="adapter", path=str(adapter), parent=given),
    )
    write_lineage(adapter, Lineage(variants=variants, base_model=str(base), quantization=quantization))
    return adapter


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(
    "config", [{"hidden_size": 128}, {"intermediate_size": 192}, {"num_hidden_layers": 1}]
)
def test_an_adapter_of_another_base(server, config, other_base, make_adapter) -> None:
    adapter = make_adapter(target_modules=[*QKV, "gate_proj"])

    (finding,) = of_rule(ask(server, other_base(**config), adapter), "shapes")

    assert finding.severity == "refused"
    assert "made for another base" in finding.reason
    if "num_hidden_layers" in config:
        assert "model.layers.1.mlp.gate_proj: the base has 1 layers" in finding.reason


def test_every_wrong_shape_is_found(other_base, make_adapter) -> None:
    """Heads of another width: q_proj fits in, k_proj and v_proj do not; three are shown, the rest counted."""
    base = other_base(num_key_value_heads=2)

    (finding,) = of_rule(ask("vllm", base, make_adapter()), "shapes")

    assert "k_proj.lora_B.weight is [32, 4], the base's model.layers.0.self_attn.k_proj [64, 64]" in (
        finding.reason
    )
    assert "; and 1 more" in finding.reason  # B of k and v in two layers


@pytest.mark.parametrize("server", SERVERS)
def test_an_adapter_of_a_base_with_fewer_layers_fits_by_shape_and_is_found(
    server, other_base, make_adapter
) -> None:
    (finding,) = of_rule(ask(server, other_base(num_hidden_layers=4), make_adapter()), "layer-count")

    assert finding.severity == "refused"
    assert "first 2 layers only, the base has 4" in finding.reason


def test_chosen_layers_are_no_smaller_base(tiny_llama, make_adapter) -> None:
    adapter = make_adapter(layers_to_transform=[0])

    assert of_rule(ask("vllm", tiny_llama, adapter), "layer-count") == []


def test_a_target_that_the_base_lacks(tiny_llama, make_adapter, copied) -> None:
    from safetensors.torch import load_file, save_file

    adapter = copied(make_adapter())
    path = adapter / "adapter_model.safetensors"
    save_file({name.replace("q_proj", "c_attn"): t for name, t in load_file(path).items()}, path)

    (finding,) = of_rule(ask("vllm", tiny_llama, adapter), "shapes")

    assert "model.layers.0.self_attn.c_attn: the base has no such layer" in finding.reason


def test_no_matrices_at_all(tiny_llama, make_adapter, copied) -> None:
    from safetensors.torch import save_file

    adapter = copied(make_adapter())
    save_file({}, adapter / "adapter_model.safetensors")

    (finding,) = of_rule(ask("vllm", tiny_llama, adapter), "shapes")

    assert "no LoRA matrices" in finding.reason


def test_embeddings_are_compared_along_their_own_axes(tiny_llama, make_adapter) -> None:
    adapter = make_adapter(target_modules=["embed_tokens", "lm_head", *QKV])

    assert of_rule(ask("vllm", tiny_llama, adapter), "shapes") == []


def test_gpt2s_transposed_layers_fit(tmp_path, make_adapter) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from tests.conftest import save_tiny_tokenizer

    base = tmp_path / "gpt2"
    save_tiny_tokenizer(base)
    config = GPT2Config(vocab_size=320, n_embd=64, n_layer=2, n_head=2, n_positions=128, eos_token_id=257)
    GPT2LMHeadModel(config).save_pretrained(base)
    adapter = make_adapter(base=base, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)

    assert of_rule(ask("vllm", base, adapter), "shapes") == []


def test_the_largest_rank(tiny_llama, make_adapter) -> None:
    findings = ask("vllm", tiny_llama, make_adapter(r=513))

    (finding,) = of_rule(findings, "rank")
    assert (finding.severity, "takes at most 512" in finding.reason) == ("refused", True)


@pytest.mark.parametrize("server", SERVERS)
def test_a_rank_that_the_configuration_does_not_say(server, tiny_llama, make_adapter, copied) -> None:
    """Two files of different trainings in one folder: the scaling would be alpha over the wrong rank."""
    adapter = copied(make_adapter())
    edit_json(adapter, "adapter_config.json", r=8)

    (finding,) = of_rule(ask(server, tiny_llama, adapter), "rank")

    assert (finding.severity, "r = 8" in finding.reason) == ("ignored", True)


def test_names_that_cannot_be_told_apart(tiny_llama, make_adapter) -> None:
    (clash,) = of_rule(ask("vllm", tiny_llama, {"base": make_adapter()}), "name")
    (reserved,) = of_rule(ask("tgi", tiny_llama, {"tgi": make_adapter()}), "name")

    assert clash.severity == "refused"
    assert (reserved.severity, reserved.issue.endswith("/2939")) == ("ignored", True)
    assert of_rule(ask("vllm", tiny_llama, {"tgi": make_adapter()}), "name") == []


@pytest.mark.parametrize("server", SERVERS)
def test_the_base_that_it_was_trained_on(server, tiny_llama, other_base, make_adapter, copied) -> None:
    adapter = trained_on(copied(make_adapter()), tiny_llama)

    assert of_rule(ask(server, tiny_llama, adapter), "base") == []
    (finding,) = of_rule(ask(server, other_base(seed=7), adapter), "base")
    assert (finding.severity, "give the base it was trained on" in finding.reason) == ("ignored", True)


@pytest.fixture(scope="module")
def dequantized(tiny_llama, tmp_path_factory):
    out = tmp_path_factory.mktemp("dequantized") / "base"
    export("base", base=tiny_llama, adapter=None, out=out, options={"quantize": "nf4"})
    return out


@pytest.mark.parametrize("server", SERVERS)
def test_a_qlora_adapter_needs_the_dequantized_base(
    server, tiny_llama, dequantized, make_adapter, copied
) -> None:
    adapter = trained_on(copied(make_adapter()), tiny_llama, NF4)

    (finding,) = of_rule(ask(server, tiny_llama, adapter), "qlora-base")

    assert finding.severity == "ignored"
    assert finding.fix == (
        f"lora-eval export base --base {tiny_llama} --adapter {adapter} --out {tiny_llama.name}-as-trained "
        "--dequantized"
    )
    assert of_rule(ask(server, dequantized, adapter), "qlora-base") == []


def test_a_base_that_was_dequantized_otherwise(tiny_llama, dequantized, make_adapter, copied) -> None:
    adapter = trained_on(copied(make_adapter()), tiny_llama, NF4 | {"bnb_4bit_quant_type": "fp4"})

    (finding,) = of_rule(ask("vllm", dequantized, adapter), "qlora-base")

    assert "of another quantization" in finding.reason
    assert f"--base {tiny_llama} " in finding.fix  # the original, not the dequantized one


def test_a_dequantized_base_of_another_model(dequantized, other_base, make_adapter, copied) -> None:
    adapter = trained_on(copied(make_adapter()), other_base(seed=9), NF4)

    (finding,) = of_rule(ask("vllm", dequantized, adapter), "qlora-base")

    assert "of another model than the adapter was trained on" in finding.reason


def test_the_merged_model_is_served_alone(tiny_llama, make_adapter, tmp_path) -> None:
    export("merge", base=tiny_llama, adapter=make_adapter(use_dora=True), out=tmp_path / "m",
           options={"onto": "original"})  # fmt: skip

    blocking = [f for f in ask("vllm", tmp_path / "m") if f.severity in ("refused", "ignored")]

    assert blocking == []


def test_findings_come_worst_first(tiny_llama, make_adapter) -> None:
    adapter = make_adapter(use_dora=True, target_modules=["lm_head", "q_proj"])

    severities = [finding.severity for finding in ask("vllm", tiny_llama, adapter)]

    order = ["refused", "ignored", "warning", "info"]
    assert severities == sorted(severities, key=order.index)
    assert set(severities) == {"refused", "warning", "info"}


def test_what_is_no_safetensors_file_is_told(tiny_llama, make_adapter, copied) -> None:
    from lora_eval.errors import ModelError

    adapter = copied(make_adapter())
    (adapter / "adapter_model.safetensors").write_bytes(b"\x00" * 20)

    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        ask("vllm", tiny_llama, adapter)


def test_no_torch_is_imported(run_python, tiny_llama, make_adapter) -> None:
    code = (
        "import sys; from pathlib import Path; from lora_eval.protocols import DeployRequest;"
        "from lora_eval.servers.vllm import VllmServer;"
        f"VllmServer().lint(DeployRequest(Path({str(tiny_llama)!r}), 'base', "
        f"{{'tuned': Path({str(make_adapter())!r})}}));"
        "assert not {'torch', 'transformers', 'peft', 'jinja2'} & set(sys.modules)"
    )
    result = run_python("-c", code)

    assert result.status == 0, result.stderr


def test_every_option_of_todays_peft_is_known(make_adapter) -> None:
    """A new PEFT writes new keys: each must get a rule or a place among the harmless ones."""
    from lora_eval.servers.features import _HARMLESS, _SPOKEN_FOR

    written = json.loads((make_adapter() / "adapter_config.json").read_text())

    assert set(written) - _HARMLESS - _SPOKEN_FOR == {"kasa_config"}


@pytest.mark.parametrize("bits", [4, 8])
def test_shapes_of_awq_bases_are_unpacked(bits, tiny_llama, make_adapter, other_base, tmp_path) -> None:
    from lora_eval.servers.inputs import Model
    from tests.models.test_compressed import save_rounded_awq

    save_rounded_awq(tiny_llama, tmp_path / "awq", bits=bits)
    plain, packed = Model("a", tiny_llama), Model("b", tmp_path / "awq")

    assert packed.modules == plain.modules
    assert (
        of_rule(ask("vllm", tmp_path / "awq", make_adapter(target_modules=[*QKV, "down_proj"])), "shapes")
        == []
    )
    wrong = make_adapter(base=other_base(intermediate_size=192), target_modules=["down_proj"])
    assert len(of_rule(ask("vllm", tmp_path / "awq", wrong), "shapes")) == 1
