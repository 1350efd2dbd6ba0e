"""TrainedBase: what the quantized layers of a base held in training; `trained_base.json` in adapters."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lora_eval.records.base import Record


class TrainedLayer(Record):
    """One quantized layer.

    `checksum` is that of its dequantized weight in the compute dtype (`models.trained_base.Checksum`);
    `offset` the mean of its blocks' scales, which double quantization takes off them (None without it).
    """

    checksum: str
    offset: float | None = None


class TrainedBase(Record):
    """The quantized layers by their path in the model. `device` is what computed them, `dtype` the compute
    dtype's name.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    device: str
    dtype: str
    layers: dict[str, TrainedLayer]
