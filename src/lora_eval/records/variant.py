"""Variant and Lineage: which weights an arm has, and how they came about."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from lora_eval.records.base import Record

VariantKind = Literal["base", "adapter", "merged", "gptq", "awq", "gguf", "served"]


class Variant(Record):
    """One set of weights that can be evaluated.

    `fingerprint` is the sha256 that `lora_eval.fingerprint` gives for the folder; `parent` is the
    fingerprint of what it was made from (the base of an adapter, the adapter of a merged model).
    """

    kind: VariantKind
    path: str
    revision: str | None = None
    fingerprint: str | None = None
    parent: str | None = None
    made_by: str | None = None


class Step(Record):
    """One operation that turned variants into another: tool, version, arguments, inputs, seconds."""

    tool: str
    version: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, str] = Field(default_factory=dict)
    wall_seconds: float | None = None


class Lineage(Record):
    """`lineage.json` beside the weights: ordered variants (base first, this one last) and their steps.

    `quantization` holds the `BitsAndBytesConfig` arguments that the base was trained under (None for
    a 16-bit base); `compare` and `export merge` rebuild exactly that base from it.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    variants: tuple[Variant, ...]
    steps: tuple[Step, ...] = ()
    quantization: dict[str, Any] | None = None
    base_model: str | None = None
    base_dtype: str | None = None
    chat_template: str | None = None
    packages: dict[str, str] = Field(default_factory=dict)
