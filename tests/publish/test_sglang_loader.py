"""The SGLang commands of a card are run word for word, against a hub on loopback; more arguments only make
them fit a CPU. SGLang's Python is $LORA_EVAL_SGLANG_PYTHON; where it is not set, this is skipped.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from lora_eval.engines.http_client import ServerClient
from lora_eval.publish import facts
from lora_eval.serve import LocalServer
from tests.publish.hub_server import Hub
from tests.publish.loading import END, IDS, FromCard, blocks, continued, published_card, write_recipe

PYTHON = os.environ.get("LORA_EVAL_SGLANG_PYTHON")
pytestmark = [
    pytest.mark.skipif(PYTHON is None, reason="$LORA_EVAL_SGLANG_PYTHON names no Python with SGLang"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]
CPU = (
    "--device cpu --attention-backend torch_native --dtype float32 --context-length 256 "
    "--max-total-tokens 4096 --disable-overlap-schedule"
)  # fmt: skip


def _sglang(command: str, names: tuple[str, ...], model: Path, cache: Path) -> FromCard:
    program, *words = shlex.split(command)
    assert program == "python"
    more = CPU.split() + (["--lora-backend", "torch_native"] if "--lora-paths" in words else [])
    return FromCard([str(PYTHON), *words, *more], names, model, cache, {"SGLANG_USE_CPU_ENGINE": "1"})


def _served(server: LocalServer, adapter: str | None) -> list[int]:
    settings = {"temperature": 0.0, "max_new_tokens": 12}
    asked = {"input_ids": list(IDS), "sampling_params": settings, "lora_path": adapter}
    found = ServerClient(server.url).post("/generate", asked)["output_ids"]
    return [each for each in found if each != END]


def _version() -> str:
    code = "import importlib.metadata as m; print(m.version('sglang'))"
    return subprocess.run(
        [str(PYTHON), "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_an_adapter_from_its_card(own: Path, tiny_llama: Path, hub: Hub, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    write_recipe(own / "adapter")
    command = blocks(published_card(hub, own, tiny_llama), "text")[1]
    assert command.partition("--tokenizer-path ")[2].split()[0] == "me/tuned"
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    alone = continued(base)
    expected = continued(PeftModel.from_pretrained(base, own / "adapter"))
    assert expected != alone
    with LocalServer(_sglang(command, ("org/base",), tiny_llama, tmp_path), print) as server:
        assert _served(server, "tuned") == expected
        assert _served(server, None) == alone
    assert _version() in facts.loaders("adapter")["sglang"]


def test_a_merged_model_from_its_card(measured: Path, tiny_llama: Path, hub: Hub, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    command = blocks(published_card(hub, measured, tiny_llama, "merged"), "text")[1]
    model = AutoModelForCausalLM.from_pretrained(measured / "merged")
    with LocalServer(_sglang(command, ("me/tuned",), measured / "merged", tmp_path), print) as server:
        assert _served(server, None) == continued(model)
    assert _version() in facts.loaders("merged")["sglang"]
