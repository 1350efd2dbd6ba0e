"""Recipes: how an adapter is trained, from YAML files and plugins to the libraries' own configurations.

Names are resolved on first use: listing recipes needs neither pydantic's records nor a library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_eval.recipes.build import (
        attention_implementation,
        lora_config,
        quantization_config,
        sft_config,
    )
    from lora_eval.recipes.family import check_family
    from lora_eval.recipes.resolve import ResolvedRecipe, load_recipe

_HOMES = {
    "ResolvedRecipe": "resolve",
    "attention_implementation": "build",
    "check_family": "family",
    "load_recipe": "resolve",
    "lora_config": "build",
    "quantization_config": "build",
    "sft_config": "build",
}

__all__ = [
    "ResolvedRecipe",
    "attention_implementation",
    "check_family",
    "load_recipe",
    "lora_config",
    "quantization_config",
    "sft_config",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
