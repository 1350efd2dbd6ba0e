"""Smoke: what a running server was asked, and whether it serves what was measured."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lora_eval.records.base import Record


class SmokeCheck(Record):
    """One question put to the server about one of its models (`arm`, the served name; None: about the whole
    server). `passed` is None where it could not be asked: `detail` then says why.
    """

    name: str
    arm: str | None
    passed: bool | None
    detail: str


class SmokeLoad(Record):
    """Answers of `new_tokens` tokens under load, `concurrency` at a time. `adapters` is how many took turns
    (0: the base alone). Latencies are those of whole answers, in milliseconds; None, with a `reason`, where
    nothing was measured.
    """

    adapters: int
    requests: int
    concurrency: int
    new_tokens: int
    seconds: float
    requests_per_second: float | None
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    reason: str | None = None


class Smoke(Record):
    """The verdict on a server: `passed` where no check failed. `tolerance` holds, for each served name, what
    counts as rounding: the largest mean and the largest single difference of log-probabilities, in nats, and
    `tolerance_source` says where they come from.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    url: str
    server: str | None = None
    passed: bool
    checks: tuple[SmokeCheck, ...]
    dtype: dict[str, str] = Field(default_factory=dict)
    tolerance: dict[str, tuple[float, float]] = Field(default_factory=dict)
    tolerance_source: str = ""
    load: tuple[SmokeLoad, ...] = ()
