"""Every command that a finding prints runs as it stands, and what it makes is served."""

from __future__ import annotations

import dataclasses
import shlex

import pytest

from lora_eval.errors import ModelError
from lora_eval.exporters.lora import check_supported
from lora_eval.models.locate import read_adapter_config
from lora_eval.servers.commands import can_merge
from lora_eval.servers.inputs import Adapter
from tests.exporters.conftest import save_qlora
from tests.servers.conftest import SERVERS, ask, edit_json, of_rule
from tests.servers.test_features import KINDS

BLOCKING = ("refused", "ignored")
# Both at once: what mends one kind does not mend the other.
PAIRS = [
    ("dora and patterns", {"use_dora": True, "rank_pattern": {"q_proj": 8}}),
    ("pissa and rslora", {"init_lora_weights": "pissa", "use_rslora": True, "alpha_pattern": {"q_proj": 3}}),
    ("tokens and a pattern", {"trainable_token_indices": [1], "target_modules": ".*q_proj"}),
]
CASES = {str(config): config for _, config, _ in KINDS} | dict(PAIRS)


def commands_of(findings) -> dict[str, str]:
    """Fixes by their command, of findings that forbid a deployment."""
    return {finding.fix: finding.rule for finding in findings if finding.fix and finding.severity in BLOCKING}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_printed_command_makes_the_arm_servable(
    case, make_adapter, tiny_llama, run_cli, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    adapter = make_adapter(**CASES[case])
    made: dict[str, str] = {}
    for server in SERVERS:
        findings = ask(server, tiny_llama, adapter)
        for command, rule in commands_of(findings).items():
            words = shlex.split(command)
            out = words[words.index("--out") + 1]
            if out not in made:
                done = run_cli(*words[1:], "--no-verify")
                assert done.status == 0, f"{command}\n{done.stderr}"
                made[out] = command
            assert made[out] == command
            again = (
                ask(server, tmp_path / out)
                if "export merge" in command
                else ask(server, tiny_llama, tmp_path / out)
            )
            assert [f.rule for f in again if f.severity in BLOCKING] == [], (server, rule, command)


def test_plain_lora_is_offered_where_it_helps(make_adapter, tiny_llama) -> None:
    def offered(server, rule, **config):
        (finding,) = of_rule(ask(server, tiny_llama, make_adapter(**config)), rule)
        return None if finding.fix is None else finding.fix.split()[2]

    assert offered("vllm", "initialisation", init_lora_weights="pissa") == "lora"
    assert offered("vllm", "initialisation", init_lora_weights="pissa_niter_4") is None
    assert offered("sglang", "rslora", use_rslora=True) == "lora"
    assert offered("sglang", "target-pattern", target_modules=".*q_proj") == "lora"
    assert offered("tgi", "patterns", rank_pattern={"q_proj": 8}) == "lora"
    assert offered("sglang", "dora", use_dora=True) == "merge"
    assert offered("sglang", "patterns", use_dora=True, rank_pattern={"q_proj": 8}) == "merge"


def fields() -> list[str]:
    from peft import LoraConfig

    return sorted(field.name for field in dataclasses.fields(LoraConfig))


@pytest.mark.parametrize("key", [*fields(), "use_new_lora"])
def test_a_merge_is_offered_just_where_the_exporter_takes_it(key, make_adapter, copied) -> None:
    adapter = copied(make_adapter())
    values = {"peft_type": "IA3", "init_lora_weights": "corda"}
    edit_json(adapter, "adapter_config.json", **{key: values.get(key, {"set": 1})})
    config = read_adapter_config(adapter)

    try:
        check_supported(adapter, config)
        taken = True
    except ModelError:
        taken = False

    own_section = key in ("corda_config", "lora_ga_config")  # the exporter looks whether it is read
    assert can_merge(Adapter("a", adapter)) is taken or own_section


def test_a_dequantized_or_quantized_base_is_not_merged_into(tmp_path, run_cli, monkeypatch) -> None:
    """The command names the base of the training, not the folder that is to be served."""
    monkeypatch.chdir(tmp_path)
    folder = save_qlora(tmp_path)
    words = ("--base", folder / "base", "--adapter", folder / "adapter", "--out", tmp_path / "as-trained")
    assert run_cli("export", "base", *words, "--dequantized", "--no-verify").status == 0
    edit_json(folder / "adapter", "adapter_config.json", rank_pattern={"q_proj": 4}, bias="lora_only")

    (finding,) = of_rule(ask("vllm", tmp_path / "as-trained", folder / "adapter"), "bias")

    assert f"--base {folder / 'base'} " in finding.fix
    done = run_cli(*shlex.split(finding.fix)[1:], "--no-verify")
    assert done.status == 0, done.stderr
