"""MergeAudit: what a merge did to every tensor it changed; `audit.json` beside the merged weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lora_eval.records.base import Record


class TensorAudit(Record):
    """One changed weight.

    `how` says by what: `lora`, `dora`, `tokens` (rows of single tokens) or `whole` (the adapter holds the
    weight itself). `applied` is how often LoRA's change was found in the sum before rounding: the projection
    of (merged - base) on the change, rounded to a whole number (for DoRA after its factors are taken out).
    None where there is no such change, or it is zero or too small for float32 to show. `kept` is the
    projection of the stored change on the one before rounding: 1.0 if rounding lost nothing on average.
    `changed` is the share of elements that differ from the base's, in the output dtype; `relative_change` the
    norm of the change over the norm of the base's weight; `quantization_error` the norm of (quantized base -
    original base) over that of the original
    (None where the base was not quantized).
    """

    tensor: str
    module: str
    how: Literal["lora", "dora", "tokens", "whole"] = "lora"
    rank: int | None = None
    scaling: float | None = None
    applied: int | None
    kept: float | None
    changed: float
    relative_change: float
    quantization_error: float | None = None


class MergeAudit(Record):
    """All changed tensors. `quantized` counts the layers passed through the training's quantization, with or
    without a change; `as_trained` those of them whose values are in every bit the ones that training kept
    checksums of (None: it kept none); `untouched` the tensors that were only copied (rounded where the dtype
    differs).
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    onto: Literal["trained", "original"]
    dtype: str
    tensors: tuple[TensorAudit, ...]
    quantized: int
    as_trained: int | None = None
    untouched: int
    notes: tuple[str, ...] = ()
