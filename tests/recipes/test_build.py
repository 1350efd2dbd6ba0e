"""The libraries' configurations from a recipe, and who fits it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_eval.errors import ModelError, RecordError
from lora_eval.fingerprint import sha256_text
from lora_eval.recipes import (
    attention_implementation,
    check_family,
    lora_config,
    quantization_config,
    sft_config,
)
from lora_eval.records import FamilyCheck, Recipe


def test_dtypes_are_names_and_an_empty_section_is_no_quantization() -> None:
    import torch

    config = quantization_config(
        Recipe(name="m", quantization={"load_in_4bit": True, "bnb_4bit_compute_dtype": "float16"})
    )
    assert config is not None
    assert config.bnb_4bit_compute_dtype is torch.float16
    assert quantization_config(Recipe(name="m")) is None


def test_the_adapter_is_for_a_causal_language_model() -> None:
    assert lora_config(Recipe(name="m", lora={"r": 4})).task_type == "CAUSAL_LM"


def test_extra_arguments_go_over_the_recipe(tmp_path: Path) -> None:
    recipe = Recipe(name="m", training={"seed": 1, "max_steps": 5})
    arguments = sft_config(recipe, tmp_path, seed=2, use_cpu=True)
    assert (arguments.seed, arguments.max_steps, arguments.use_cpu) == (2, 5, True)
    assert arguments.output_dir == str(tmp_path)


def test_bf16_works_on_a_machine_without_an_accelerator(tmp_path: Path) -> None:
    import torch

    arguments = sft_config(Recipe(name="m", training={"bf16": True}), tmp_path)
    assert arguments.bf16
    assert arguments.use_cpu is not torch.accelerator.is_available()


@pytest.mark.parametrize("given", [{"gradient_checkpointing": False}, {"activation_checkpointing": False}])
def test_both_names_of_checkpointing_are_understood(tmp_path: Path, given: dict[str, bool]) -> None:
    assert sft_config(Recipe(name="m"), tmp_path).gradient_checkpointing  # TRL's default
    assert not sft_config(Recipe(name="m", training=given), tmp_path).gradient_checkpointing


def test_what_a_library_refuses_is_said_with_recipe_and_section(tmp_path: Path) -> None:
    for section, values, build in (
        ("training", {"optim": "adamw_paged"}, lambda recipe: sft_config(recipe, tmp_path)),
        ("training", {"nothing": 1}, lambda recipe: sft_config(recipe, tmp_path)),
        ("quantization", {"load_in_4bit": True, "load_in_8bit": True}, quantization_config),
        ("quantization", {"bnb_4bit_compute_dtype": "bf16"}, quantization_config),
        ("lora", {"use_dora": True, "megatron_config": {"a": 1}}, lora_config),
    ):
        with pytest.raises(RecordError, match=f"recipe 'mine': {section}: "):
            build(Recipe(name="mine", **{section: values}))


def test_attention_is_what_is_asked_for_or_the_best_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    import torch

    from lora_eval.recipes import build

    named = Recipe(name="m", model={"attn_implementation": "eager"})
    auto = Recipe(name="m", model={"attn_implementation": "auto"})
    assert attention_implementation(named) == "eager"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    assert attention_implementation(auto) == attention_implementation(Recipe(name="m")) == "sdpa"
    monkeypatch.setattr(build, "find_spec", lambda name: importlib.util.find_spec("torch"))
    assert attention_implementation(auto) == "flash_attention_2"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert attention_implementation(auto) == "sdpa"


def test_a_base_fits_by_its_config_and_its_templates_text() -> None:
    family = FamilyCheck(model_type=("llama",), template_sha256=(sha256_text("T"),))
    recipe = Recipe(name="mine", family=family)
    check_family(recipe, "llama", "T")
    check_family(recipe, "llama", None)  # never tuned for chat: the recipe's template is put on it
    check_family(Recipe(name="any"), "anything", "whatever")
    with pytest.raises(ModelError, match="its config says model_type 'qwen2', the recipe is for 'llama'"):
        check_family(recipe, "qwen2", "T")
    with pytest.raises(ModelError, match=f"the sha256 of its chat template is {sha256_text('U')}"):
        check_family(recipe, "llama", "U")
