"""Editors get the installed libraries' own field names."""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

import pytest

from lora_eval.recipes.json_schema import annotation_schema, recipe_json_schema
from lora_eval.recipes.signatures import section_fields


class Colour(Enum):
    RED = "red"


def test_sections_list_every_field_and_no_other() -> None:
    schema = recipe_json_schema()
    assert schema["required"] == ["name"]
    assert schema["additionalProperties"] is False
    for section in ("model", "lora", "quantization", "training"):
        part = schema["properties"][section]
        assert set(part["properties"]) == set(section_fields(section))
        assert part["additionalProperties"] is False
    training = schema["properties"]["training"]["properties"]
    assert training["learning_rate"] == {
        "type": "number",
        "description": "The initial learning rate for AdamW.",
    }
    assert "output_dir" not in training
    assert schema["properties"]["lora"]["properties"]["bias"]["enum"] == ["none", "all", "lora_only"]


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (list[str], {"type": "array", "items": {"type": "string"}}),
        (dict[str, int], {"type": "object"}),
        (Colour, {"enum": ["red"]}),
        (Literal["a", "b_[number]"], {"type": "string"}),
        (tuple[int, int], {"type": "array", "items": {}}),
        (Any, {}),
        (object | None, {}),
    ],
)
def test_annotations(annotation: Any, schema: dict[str, Any]) -> None:
    assert annotation_schema(annotation) == schema
