"""Every feature of an adapter that a server refuses or leaves out, with adapters that PEFT has saved."""

from __future__ import annotations

import json

import pytest

from tests.servers.conftest import SERVERS, ask, of_rule

# rule, LoraConfig, and what vllm, sglang, tgi and lorax make of it (None: they serve it)
KINDS = [
    ("dora", {"use_dora": True}, ("refused", "refused", "ignored", "ignored")),
    ("rslora", {"use_rslora": True}, (None, "ignored", None, None)),
    ("patterns", {"rank_pattern": {"q_proj": 8}}, (None, "ignored", "ignored", "ignored")),
    ("patterns", {"alpha_pattern": {"q_proj": 3}}, (None, "ignored", "ignored", "ignored")),
    ("modules-to-save", {"modules_to_save": ["lm_head"]}, ("refused", "ignored", "ignored", "ignored")),
    ("lora-bias", {"lora_bias": True}, ("refused", "ignored", "ignored", "ignored")),
    ("initialisation", {"init_lora_weights": "pissa"}, ("refused", "ignored", "ignored", "ignored")),
    ("initialisation", {"init_lora_weights": "olora"}, ("refused", "ignored", "ignored", "ignored")),
    ("initialisation", {"init_lora_weights": "gaussian"}, (None, None, None, None)),
    ("trained-tokens", {"trainable_token_indices": [1, 2]}, ("refused", "ignored", "ignored", "ignored")),
    ("lm-head", {"target_modules": ["lm_head", "q_proj", "v_proj"]}, ("warning", "info", None, None)),
    ("target-pattern", {"target_modules": ".*(q|v)_proj"}, (None, "refused", None, None)),
    ("target-modules", {"target_modules": ["embed_tokens"]}, (None, None, "ignored", None)),
    ("target-modules", {"target_modules": ["lm_head", "q_proj", "v_proj"]}, (None, None, "ignored", None)),
    ("alora", {"alora_invocation_tokens": [5]}, ("refused", "ignored", "ignored", "ignored")),
    ("partial-layers", {"layers_to_transform": [1]}, (None, None, "ignored", "ignored")),
    ("fused-layers", {"target_modules": ["q_proj"]}, (None, "refused", None, None)),
    ("fused-layers", {"target_modules": ["k_proj", "v_proj"]}, (None, "refused", None, None)),
    ("fused-layers", {"target_modules": ["up_proj", "down_proj"]}, (None, "refused", None, None)),
    ("fused-layers", {"target_modules": ["q_proj", "v_proj", "gate_proj"]}, (None, None, None, None)),
    ("copied-vocabulary", {"target_modules": ["lm_head", "q_proj", "v_proj"]}, ("info", None, None, None)),
]


@pytest.mark.parametrize("place", range(len(SERVERS)), ids=SERVERS)
@pytest.mark.parametrize(("rule", "config", "expected"), KINDS, ids=lambda value: str(value)[:40])
def test_each_kind_of_adapter(rule, config, expected, place, make_adapter, tiny_llama) -> None:
    findings = ask(SERVERS[place], tiny_llama, make_adapter(**config))

    assert [finding.severity for finding in of_rule(findings, rule)] == (
        [] if expected[place] is None else [expected[place]]
    )
    # Nothing else forbids it: each rule speaks of its own fault only.
    others = {finding.rule for finding in findings if finding.severity in ("refused", "ignored")} - {rule}
    known = {"alora": {"peft-type"}, "lm-head": {"target-modules"}, "copied-vocabulary": {"target-modules"}}
    assert others <= (known.get(rule, set()) - ({"target-modules"} if SERVERS[place] != "tgi" else set()))


@pytest.mark.parametrize("server", SERVERS)
def test_plain_lora_is_served_everywhere(server, make_adapter, tiny_llama) -> None:
    findings = ask(server, tiny_llama, make_adapter())

    assert {finding.severity for finding in findings} <= {"warning", "info"}


@pytest.mark.parametrize("server", SERVERS)
def test_trained_biases(server, make_adapter, tiny_llama, copied) -> None:
    adapter = copied(make_adapter())
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bias": "all"}))

    (finding,) = of_rule(ask(server, tiny_llama, adapter), "bias")

    assert finding.severity == ("refused" if server == "vllm" else "ignored")
    assert finding.reason.startswith("bias is 'all': ")
    assert finding.fix.startswith(f"lora-eval export merge --base {tiny_llama} --adapter {adapter} --out ")


@pytest.mark.parametrize("server", SERVERS)
def test_options_that_nobody_knows_are_not_taken_for_harmless(
    server, make_adapter, tiny_llama, copied
) -> None:
    adapter = copied(make_adapter())
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_new_lora": True}))

    (finding,) = of_rule(ask(server, tiny_llama, adapter), "other-options")

    assert (finding.severity, "use_new_lora" in finding.reason) == ("ignored", True)


@pytest.mark.parametrize("server", SERVERS)
def test_other_kinds_than_lora(server, tiny_llama, make_adapter, copied) -> None:
    adapter = copied(make_adapter())
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_type": "IA3"}))

    (finding,) = of_rule(ask(server, tiny_llama, adapter), "peft-type")

    assert (finding.severity, finding.fix) == ("refused", None)


@pytest.mark.parametrize("server", SERVERS)
def test_a_resized_vocabulary(server, tiny_llama, make_adapter, copied) -> None:
    """PEFT saves the whole embedding beside the matrices where its size is no longer the base's."""
    import torch
    from safetensors.torch import load_file, save_file

    adapter = copied(make_adapter())
    path = adapter / "adapter_model.safetensors"
    name = "base_model.model.model.embed_tokens.base_layer.weight"
    save_file(load_file(path) | {name: torch.zeros(330, 64)}, path)

    (finding,) = of_rule(ask(server, tiny_llama, adapter), "resized-vocabulary")

    assert finding.severity == "ignored"
    assert "model.embed_tokens [330, 64]" in finding.reason


@pytest.mark.parametrize("server", SERVERS)
def test_pickled_weights(server, tiny_llama, make_adapter, copied) -> None:
    import torch
    from safetensors.torch import load_file

    adapter = copied(make_adapter())
    path = adapter / "adapter_model.safetensors"
    torch.save(load_file(path), adapter / "adapter_model.bin")
    path.unlink()

    assert [f.severity for f in of_rule(ask(server, tiny_llama, adapter), "file-format")] == ["refused"]


def test_upstream_issues_are_named(tiny_llama, make_adapter) -> None:
    (dora,) = of_rule(ask("vllm", tiny_llama, make_adapter(use_dora=True)), "dora")

    assert dora.issue == "https://github.com/vllm-project/vllm/issues/6983"
