"""The libraries' own configuration objects, made from a recipe's sections."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_eval.errors import RecordError
from lora_eval.records import Recipe

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig
    from trl import SFTConfig


def lora_config(recipe: Recipe) -> LoraConfig:
    """Return the adapter's configuration for a causal language model.

    Raises:
        RecordError: PEFT refuses the section; the message holds its reason.
    """
    from peft import LoraConfig

    try:
        return LoraConfig(task_type="CAUSAL_LM", **recipe.lora)
    except (TypeError, ValueError) as error:
        raise _refused(recipe, "lora", error) from error


def quantization_config(recipe: Recipe) -> BitsAndBytesConfig | None:
    """Return how the base is quantized on loading, or None where the recipe's section is empty.

    Raises:
        RecordError: transformers refuses the section; the message holds its reason.
    """
    if not recipe.quantization:
        return None
    from transformers import BitsAndBytesConfig

    try:
        return BitsAndBytesConfig(**recipe.quantization)
    except (AttributeError, TypeError, ValueError) as error:
        raise _refused(recipe, "quantization", error) from error


def sft_config(recipe: Recipe, output_dir: Path, **extra: Any) -> SFTConfig:
    """Return the trainer's arguments; `extra` goes over the recipe. `use_cpu` is set where the machine has
    no accelerator, unless it is given: transformers refuses bf16 there otherwise.

    Raises:
        RecordError: transformers or TRL refuses the section; the message holds its reason.
    """
    import torch
    from trl import SFTConfig

    values = {"gradient_checkpointing": True, **recipe.training, **extra}
    # transformers 5.2x calls it activation_checkpointing and warns about the old name, TRL's own default too.
    for suffix in ("", "_kwargs"):
        old, new = f"gradient_checkpointing{suffix}", f"activation_checkpointing{suffix}"
        if old in values and new in SFTConfig.__dataclass_fields__:
            value = values.pop(old)
            values.setdefault(new, value)
    values.setdefault("use_cpu", not torch.accelerator.is_available())
    try:
        return SFTConfig(output_dir=str(output_dir), **values)
    except (TypeError, ValueError) as error:
        raise _refused(recipe, "training", error) from error


def attention_implementation(recipe: Recipe) -> str:
    """Return what to pass as `attn_implementation`: `auto` (and no value) is flash_attention_2 where the
    package flash_attn and a CUDA device are present, else sdpa.
    """
    wanted = recipe.model.get("attn_implementation", "auto")
    if wanted != "auto":
        return str(wanted)
    import torch

    present = torch.cuda.is_available() and find_spec("flash_attn") is not None
    return "flash_attention_2" if present else "sdpa"


def _refused(recipe: Recipe, section: str, error: Exception) -> RecordError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return RecordError(f"recipe '{recipe.name}'", [f"{section}: {reason}"])
