"""Recipes: how an adapter is trained, from YAML files and plugins to the libraries' own configurations."""

from lora_eval.recipes.build import attention_implementation, lora_config, quantization_config, sft_config
from lora_eval.recipes.resolve import Layer, ResolvedRecipe, find_layers, load_recipe

__all__ = [
    "Layer",
    "ResolvedRecipe",
    "attention_implementation",
    "find_layers",
    "load_recipe",
    "lora_config",
    "quantization_config",
    "sft_config",
]
