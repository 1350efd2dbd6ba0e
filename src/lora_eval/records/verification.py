"""Verification: whether a candidate's next-token distributions are the reference's."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lora_eval.records.base import Record
from lora_eval.records.variant import Variant


class Divergence(Record):
    """KL(reference || candidate) in nats over `tokens` next-token distributions, and how often the most
    likely token is the same (`top1_agreement`, 0..1). `item_flips` counts prompts whose greedy answer
    or choice differs, out of `items`. `answer_mean_kl` is the mean over the positions that predict the
    reference's greedy answers alone (None: not measured); the others are those of the prompts.
    """

    tokens: int
    mean_kl: float
    p99_kl: float
    max_kl: float
    top1_agreement: float
    items: int
    item_flips: int
    answer_mean_kl: float | None = None


class Verification(Record):
    """`verification.json`: candidate against reference, with the measured noise floor that sets the
    tolerance. `tolerance_source` says in words where each tolerance comes from.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    reference: Variant
    candidate: Variant
    measured: Divergence
    floor: Divergence | None
    tolerance: dict[str, float]
    tolerance_source: str
    passed: bool
    failures: tuple[str, ...] = ()
    packages: dict[str, str] = Field(default_factory=dict)
    wall_seconds: float | None = None
    prompts_sha256: str | None = None
    expected: Literal["equal", "near"] = Field(default="equal")
