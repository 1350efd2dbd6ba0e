"""The Python of a card is run word for word, against a hub on loopback: it loads what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_eval.publish import facts
from tests.publish.hub_server import Hub
from tests.publish.loading import blocks, published_card

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache for what is downloaded."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DISABLE_SAFETENSORS_CONVERSION", "1")


def run(card: str) -> dict[str, Any]:
    """The names that the card's one block of Python leaves."""
    names: dict[str, Any] = {}
    (code,) = blocks(card, "python")
    exec(compile(code, "README.md", "exec"), names)
    return names


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.arange(3, 40)[None]).logits


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("quantization", [None, NF4], ids=["16 bits", "nf4"])
def test_the_python_of_an_adapters_card_loads_what_was_measured(
    own: Path, tiny_llama: Path, hub: Hub, quantization: dict[str, Any] | None
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    for arm in ("base", "adapter"):
        path = own / "runs" / "mine" / "runs" / arm / "run.json"
        header = json.loads(path.read_text("utf-8"))
        path.write_text(json.dumps(header | {"dtype": "float32", "quantization": quantization}), "utf-8")
    found = run(published_card(hub, own, tiny_llama))
    settings = BitsAndBytesConfig(**quantization) if quantization else None
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype="float32", quantization_config=settings)
    assert torch.equal(logits(found["model"]), logits(PeftModel.from_pretrained(base, own / "adapter")))
    assert found["tokenizer"].chat_template
    assert "BitsAndBytesConfig" in found or not quantization


@pytest.mark.usefixtures("cache")
def test_the_python_of_a_merged_models_card_loads_it(measured: Path, tiny_llama: Path, hub: Hub) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    found = run(published_card(hub, measured, tiny_llama, "merged"))
    assert torch.equal(
        logits(found["model"]), logits(AutoModelForCausalLM.from_pretrained(measured / "merged"))
    )


@pytest.mark.usefixtures("cache")
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
@pytest.mark.parametrize(
    ("folders", "kind"), [("quantized", "gptq"), pytest.param("awq", "awq", marks=pytest.mark.slow)]
)
def test_the_python_of_a_quantized_models_card_loads_it(
    request: pytest.FixtureRequest, tiny_llama: Path, hub: Hub, folders: str, kind: str
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = request.getfixturevalue(folders)
    found = run(published_card(hub, folder, tiny_llama, kind))
    again = AutoModelForCausalLM.from_pretrained(folder / kind)
    assert torch.equal(logits(found["model"]), logits(again))
    assert not torch.equal(
        logits(again).float(), logits(AutoModelForCausalLM.from_pretrained(folder / "merged")).float()
    )


def test_the_card_names_the_versions_that_our_environment_has() -> None:
    pins = (Path(__file__).parents[2] / "constraints" / "cpu.txt").read_text("utf-8").split()
    versions = dict(pin.lower().split("==") for pin in pins if "==" in pin)
    both = f"transformers {versions['transformers']} and peft {versions['peft']}"
    assert facts.loaders("adapter")["python"] == both
    assert facts.loaders("merged")["python"] == f"transformers {versions['transformers']}"
    gptq = f"transformers {versions['transformers']} and gptqmodel {versions['gptqmodel']}"
    assert facts.loaders("gptq")["python"] == gptq
    awq = f"transformers {versions['transformers']} and compressed-tensors {versions['compressed-tensors']}"
    assert facts.loaders("awq")["python"] == awq


def test_what_was_not_run_is_said_not_to_be(measured: Path, tiny_llama: Path, hub: Hub) -> None:
    card = published_card(hub, measured, tiny_llama)
    assert (
        f"lora-eval's own tests run this, on a small model, with {facts.loaders('adapter')['vllm']}." in card
    )
    assert (
        f"SGLang. lora-eval's own tests run this, on a small model, with {facts.loaders('adapter')['sglang']}"
        in card
    )
    assert "TGI. This was not run by lora-eval's tests." in card
    assert set(facts.loaders("awq")) == {"python", "vllm"}
    assert [command.split()[0] for command in blocks(card, "text")] == [
        "vllm", "python", "text-generation-launcher",
    ]  # fmt: skip
