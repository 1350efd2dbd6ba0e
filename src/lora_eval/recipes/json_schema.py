"""A JSON schema of recipe files, for editors: sections with the field names, types and help texts of the
installed LoraConfig, BitsAndBytesConfig and SFTConfig.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from lora_eval.recipes.signatures import RESERVED, section_fields
from lora_eval.records import Recipe

_SECTIONS = {
    "model": "How the base is loaded.",
    "lora": "Fields of peft.LoraConfig.",
    "quantization": "Arguments of transformers.BitsAndBytesConfig; null: no quantization.",
    "training": "Fields of trl.SFTConfig.",
}
_SIMPLE: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    types.NoneType: {"type": "null"},
    dict: {"type": "object"},
    list: {"type": "array"},
}


def recipe_json_schema() -> dict[str, Any]:
    """Return the schema (JSON Schema 2020-12). Imports the sections' libraries."""
    schema: dict[str, Any] = Recipe.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "lora-eval recipe"
    for section, about in _SECTIONS.items():
        helps = _helps(section)
        properties = {
            name: annotation_schema(kind) | ({"description": helps[name]} if name in helps else {})
            for name, kind in section_fields(section).items()
        }
        schema["properties"][section] = {
            "description": about,
            "type": ["object", "null"],
            "properties": properties,
            "additionalProperties": False,
        }
    return schema


def annotation_schema(annotation: Any) -> dict[str, Any]:
    """Return the schema of one annotation; what it cannot say is left open (`{}`)."""
    if annotation in _SIMPLE:
        return dict(_SIMPLE[annotation])
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        forms = [annotation_schema(form) for form in arguments]
        return {} if {} in forms else {"anyOf": forms}
    if origin is Literal:
        # PEFT writes a family of options as 'pissa_niter_[number of iters]'.
        if any("[" in str(option) for option in arguments):
            return {"type": "string"}
        return {"enum": list(arguments)}
    if origin in (list, tuple, set):
        return {"type": "array", "items": annotation_schema(arguments[0]) if len(arguments) == 1 else {}}
    if origin is dict or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return {"type": "object"}
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return {"enum": [member.value for member in annotation]}
    return {}


def _helps(section: str) -> dict[str, str]:
    if section == "lora":
        from peft import LoraConfig as Config
    elif section == "training":
        from trl import SFTConfig as Config
    else:
        return {}
    return {
        field.name: " ".join(str(field.metadata["help"]).split())
        for field in fields(Config)
        if "help" in field.metadata and f"{section}.{field.name}" not in RESERVED
    }
