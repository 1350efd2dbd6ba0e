"""What the sections of a recipe may hold: the fields of LoraConfig, BitsAndBytesConfig and SFTConfig as they
are installed, with the types that their annotations tell.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from lora_eval.schema import suggest

# Keys that the libraries have and a recipe does not: who sets them instead.
RESERVED = {
    "lora.task_type": "it is always CAUSAL_LM",
    "lora.peft_type": "it is always LORA",
    "lora.peft_version": "it is written when the adapter is saved",
    "lora.inference_mode": "it is set when the adapter is loaded",
    "training.output_dir": "it is given with --out",
    "training.model_init_kwargs": "use the section 'model'",
    "training.chat_template_path": "use the top-level key 'chat_template'",
    "training.hub_token": "a secret does not belong in a recipe; set HF_TOKEN",
    "training.local_rank": "the launcher sets it",
}
MODEL_FIELDS: dict[str, Any] = {"dtype": str, "attn_implementation": str, "revision": str | None}

_DTYPES = ("float16", "bfloat16", "float32")
_STORAGE = ("float16", "float32", "int8", "uint8", "float64", "bfloat16")
_BNB_FIELDS = {
    "llm_int8_skip_modules": list[str] | None,
    "bnb_4bit_compute_dtype": Literal[_DTYPES] | None,
    "bnb_4bit_quant_type": Literal["nf4", "fp4"],
    "bnb_4bit_quant_storage": Literal[_STORAGE] | None,
}
# What no library checks before the first step, or not at all.
_RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "lora.r": ("at least 1", lambda value: value >= 1),
    "lora.lora_alpha": ("above 0", lambda value: value > 0),
    "lora.lora_dropout": ("at least 0 and below 1", lambda value: 0 <= value < 1),
    "training.learning_rate": ("above 0", lambda value: value > 0),
    "training.max_length": ("at least 1", lambda value: value is None or value >= 1),
    "training.per_device_train_batch_size": ("at least 1", lambda value: value >= 1),
    "training.gradient_accumulation_steps": ("at least 1", lambda value: value >= 1),
}


def section_problems(section: str, values: Mapping[str, Any]) -> list[str]:
    """Return one line for each unknown key, wrong type or impossible value of a section."""
    return list(_problems(section, values))


def _problems(section: str, values: Mapping[str, Any]) -> Iterator[str]:
    known = section_fields(section)
    for key, value in values.items():
        path = f"{section}.{key}"
        if path in RESERVED:
            yield f"'{path}' cannot be set in a recipe: {RESERVED[path]}"
        elif key not in known:
            yield f"unknown key '{path}'{suggest(str(key), list(known))}"
        elif not fits(value, known[key]):
            yield f"{path}: expected {describe(known[key])}, got {value!r}"
        elif path in _RANGES and not _RANGES[path][1](value):
            yield f"{path}: expected a value {_RANGES[path][0]}, got {value!r}"


@cache
def section_fields(section: str) -> dict[str, Any]:
    """Return the keys of a section with their annotations. Imports the section's library."""
    if section == "model":
        return MODEL_FIELDS
    fields = {"lora": _lora_fields, "quantization": _bnb_fields, "training": _sft_fields}[section]()
    return {key: kind for key, kind in fields.items() if f"{section}.{key}" not in RESERVED}


def fits(value: Any, annotation: Any) -> bool:
    """True where a value read from YAML is of the annotated type. A whole number is also a number; names
    of an enumeration are text; what cannot be decided from the annotation is taken.
    """
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return any(fits(value, form) for form in get_args(annotation))
    if origin is Literal:
        return any(_is_option(value, option) for option in get_args(annotation))
    if origin in (list, tuple, set):
        return isinstance(value, list) and _items_fit(value, annotation)
    if origin is dict or annotation is dict:
        return isinstance(value, Mapping)
    if annotation is type(None) or annotation is None:
        return value is None
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (str, bool, list):
        return isinstance(value, annotation)
    return value is not None or annotation is Any


def describe(annotation: Any) -> str:
    """Return the annotation in words for a person who writes YAML."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        # Sorted: typing keeps one of two equal unions, so their order is that of whoever came first.
        return " or ".join(sorted(set(map(describe, get_args(annotation))), key=lambda w: (w == "null", w)))
    if origin is Literal:
        return " or ".join(repr(option) for option in get_args(annotation))
    words = {
        str: "text",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        types.NoneType: "null",
    }
    if annotation in words:
        return words[annotation]
    if origin in (list, tuple, set) or annotation is list:
        return "a list"
    return (
        "a mapping"
        if origin is dict or annotation is dict
        else getattr(annotation, "__name__", str(annotation))
    )


def _is_option(value: Any, option: Any) -> bool:
    # PEFT writes a family of options as 'pissa_niter_[number of iters]'.
    if isinstance(option, str) and "[" in option:
        return isinstance(value, str) and value.startswith(option.partition("[")[0])
    return type(value) is type(option) and bool(value == option)


def _items_fit(value: list[Any], annotation: Any) -> bool:
    kinds = get_args(annotation)
    if get_origin(annotation) is tuple and kinds and kinds[-1] is not Ellipsis:
        return len(value) == len(kinds) and all(map(fits, value, kinds))
    return not kinds or all(fits(item, kinds[0]) for item in value)


def _lora_fields() -> dict[str, Any]:
    from peft import LoraConfig

    return typing.get_type_hints(LoraConfig)


def _sft_fields() -> dict[str, Any]:
    from dataclasses import fields

    from trl import SFTConfig

    hints = typing.get_type_hints(SFTConfig)
    return {field.name: hints[field.name] for field in fields(SFTConfig) if field.init}


def _bnb_fields() -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    parameters = list(inspect.signature(BitsAndBytesConfig.__init__).parameters.values())[1:]
    named = [item for item in parameters if item.kind is not inspect.Parameter.VAR_KEYWORD]
    # Not annotated: the default's type is the type.
    return {item.name: _BNB_FIELDS.get(item.name, type(item.default)) for item in named}
