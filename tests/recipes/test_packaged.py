"""Every packaged recipe binds to the installed libraries, and holds the literature's defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_eval.chat import load_template
from lora_eval.recipes import load_recipe, lora_config, quantization_config, sft_config
from lora_eval.registry import find_plugin, list_plugins

PACKAGED = [plugin.name for plugin in list_plugins("recipe") if plugin.path is not None]
QLORA = ["qlora-base", "qlora-llama3-8b", "qlora-qwen2.5-7b"]


@pytest.mark.parametrize("name", PACKAGED)
def test_it_makes_the_real_configurations_without_a_warning(name: str, tmp_path: Path) -> None:
    found = load_recipe(name)
    recipe = found.recipe
    assert recipe.name == name
    assert recipe.summary
    assert lora_config(recipe).r == recipe.lora["r"]
    quantization = quantization_config(recipe)
    assert (quantization is not None) == bool(recipe.quantization)
    arguments = sft_config(recipe, tmp_path / "out")
    assert arguments.learning_rate == recipe.training["learning_rate"]
    assert not (tmp_path / "out").exists()
    if recipe.chat_template is not None:
        template = load_template(recipe.chat_template)
        allowed = recipe.family.template_sha256
        assert not allowed or template.upstream_sha256 in allowed
    if recipe.suite is not None:
        find_plugin("suite", recipe.suite)
    found.data_files()
    found.eval_files()


@pytest.mark.parametrize("name", QLORA)
def test_the_literatures_defaults(name: str, tmp_path: Path) -> None:
    import torch

    recipe = load_recipe(name).recipe
    lora, quantization = lora_config(recipe), quantization_config(recipe)
    arguments = sft_config(recipe, tmp_path)
    assert quantization is not None
    assert quantization.load_in_4bit
    assert quantization.bnb_4bit_quant_type == "nf4"
    assert quantization.bnb_4bit_use_double_quant
    assert quantization.bnb_4bit_compute_dtype is torch.bfloat16
    assert lora.target_modules == "all-linear"
    assert 16 <= lora.r <= 64
    assert lora.lora_alpha == 2 * lora.r
    assert 1e-4 <= arguments.learning_rate <= 5e-4
    assert arguments.get_warmup_steps(1000) == 30
    assert 1 <= arguments.num_train_epochs <= 3
    assert arguments.optim.value == "paged_adamw_8bit"
    assert arguments.max_grad_norm == 0.3
    assert arguments.gradient_checkpointing
    assert arguments.bf16
    assert arguments.assistant_only_loss
    assert arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps == 16
    assert recipe.model["attn_implementation"] == "auto"
    assert any("2305.14314" in reference for reference in recipe.references)


@pytest.mark.parametrize("name", QLORA)
def test_each_value_of_a_section_says_where_it_comes_from(name: str) -> None:
    plugin = find_plugin("recipe", name)
    assert plugin.path is not None
    for line in plugin.path.read_text("utf-8").splitlines():
        key = line.strip().split(":")[0]
        if line.startswith("  ") and key in ("r", "lora_alpha", "lora_dropout", "learning_rate", "optim"):
            assert "#" in line, f"{name}: '{key}' has no source"
