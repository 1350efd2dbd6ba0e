"""Run: one suite scored on one variant; `run.json` beside `samples.parquet`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from lora_eval.records.base import Record
from lora_eval.records.variant import Variant


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One item of one task, answered once, under one filter.

    Paired across runs by (task, item_id, doc_hash, filter, repeat); `prompt_sha256` proves that both
    arms saw the same prompt. `metrics` maps a metric's name to its value for this item, or None with
    the reason in `reason`.

    Perplexities and bits per byte are no means of items: lm-eval sums log-likelihoods and weights. For them
    `metrics` holds the item's log-likelihood in nats and `weights` its words or bytes (1 where absent),
    the two numbers that lm-eval's own `process_results` gives.

    `choices` are the texts that `log_likelihoods` belong to, where there are several to choose from.
    """

    task: str
    item_id: int
    doc_hash: str
    filter: str
    repeat: int
    prompt_sha256: str
    prompt: str
    target: str
    output: str
    metrics: dict[str, float | None]
    log_likelihoods: tuple[float, ...] = ()
    prompt_tokens: int | None = None
    finish_reason: str | None = None
    cluster: str | None = None
    reason: str | None = None
    weights: dict[str, float] = field(default_factory=dict)
    choices: tuple[str, ...] = ()


class TaskResult(Record):
    """One aggregated figure as lm-eval computed it: `value` is None where lm-eval gave none."""

    task: str
    metric: str
    filter: str
    higher_is_better: bool
    value: float | None
    n: int


class Work(Record):
    """What the answers of an arm cost, counted while they were computed.

    `requested_tokens` is what one request at a time would forward, `distinct_tokens` the size of the token
    tree of the same requests (each token once after equal predecessors; every generated token counts), and
    `forwarded_tokens` what went through the model. `stored_requests` were answered from earlier runs and
    are in none of the token counts. `ratio` is requested over forwarded tokens, None where none was. Of
    `drafted_tokens`, `accepted_tokens` were right. `seconds` is time inside the engine.
    """

    requests: int = 0
    stored_requests: int = 0
    requested_tokens: int = 0
    distinct_tokens: int = 0
    forwarded_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    ratio: float | None = None
    seconds: float = 0.0


class Run(Record):
    """Header of a run. `suite_fingerprint` and `seeds` must agree before two runs may be paired."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    arm: str
    variant: Variant
    suite: str
    suite_fingerprint: str
    task_versions: dict[str, str] = Field(default_factory=dict)
    engine: str
    dtype: str
    quantization: dict[str, Any] | None = None
    seeds: dict[str, int] = Field(default_factory=dict)
    limit: int | None = None
    results: tuple[TaskResult, ...] = ()
    packages: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, Any] = Field(default_factory=dict)
    git_commit: str | None = None
    prompt_tokens: int | None = None
    wall_seconds: float | None = None
    work: Work | None = None
    dropped_items: dict[str, int] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    status: Literal["complete", "partial"] = "complete"


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A run read back: its header and its rows."""

    run: Run
    rows: list[SampleRow] = field(default_factory=list)
