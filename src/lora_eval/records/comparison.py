"""Comparison: every pair of arms, task by task, with interval, test and verdict."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from lora_eval.records.base import Record

Verdict = Literal["better", "worse", "not_worse", "inconclusive"]


class Arm(Record):
    """One column of the comparison. `notes` say how it was opened (for example `base quantized to NF4`)."""

    name: str
    kind: str
    fingerprint: str | None
    path: str
    notes: tuple[str, ...] = ()


class Pair(Record):
    """Arm `b` against arm `a` on one task and metric, paired by item.

    `difference` is b minus a in the metric's own units; `ci_low`, `ci_high` bound it at `level`
    (two-sided). `p_value` is None where no test applies, and `reason` then says why. `wins` counts items
    on which `b` is better, whatever the metric's direction. `mde` is the smallest difference detectable
    with power 0.8 at this n, in the metric's units; `n_needed` the items that would decide an inconclusive
    pair if the difference seen is the true one (None: no n would, or none is needed). `missing` counts items
    that only one arm answered or that have no value. `ratio` (b over a) is set for perplexities only.
    Undefined is None with a reason, never 0.
    """

    a: str
    b: str
    n: int
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    level: float
    p_value: float | None
    p_adjusted: float | None
    method: str
    wins: int
    losses: int
    ties: int
    mde: float | None
    margin: float | None = None
    verdict: Verdict
    reason: str | None = None
    n_needed: int | None = None
    missing: int = 0
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None


class TaskComparison(Record):
    """All pairs of one task, metric and filter; `means` are lm-eval's own figures for each arm.

    `n` items were answered by every arm; `dropped_items` were not, or have no value in some arm. The verdict
    rests on metrics with `primary`; the others are reported beside them and stay outside the correction for
    the number of tasks. A group's tasks are pooled under its name; each of them follows as not primary.
    """

    task: str
    metric: str
    filter: str
    higher_is_better: bool
    role: str = "other"
    primary: bool = True
    n: int
    means: dict[str, float | None]
    pairs: tuple[Pair, ...]
    dropped_items: int = 0


class Comparison(Record):
    """`comparison.json`: what `compare` writes and every report is made from."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    title: str = ""
    arms: tuple[Arm, ...]
    suite: dict[str, Any]
    tasks: tuple[TaskComparison, ...]
    controls: dict[str, Any] = Field(default_factory=dict)
    gate: dict[str, Any] | None = None
    timing: dict[str, Any] = Field(default_factory=dict)
    packages: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
