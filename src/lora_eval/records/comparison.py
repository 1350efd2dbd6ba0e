"""Comparison: every pair of arms, task by task, with interval, test and verdict."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from lora_eval.records.base import Record
from lora_eval.records.gate import GateResult

Verdict = Literal["better", "worse", "not_worse", "inconclusive"]


class ArmRun(Record):
    """One training run of an arm that has several: it was scored as the run `runs/NAME`."""

    name: str
    fingerprint: str | None
    path: str


class Arm(Record):
    """One column of the comparison. `notes` say how it was opened (for example `base quantized to NF4`).

    `runs` names the training runs (seeds) of an arm that has several, else it is empty. Such an arm's value
    of an item is the mean over its runs; it has no weights of its own (`fingerprint` None) and no folder
    `runs/NAME`.
    """

    name: str
    kind: str
    fingerprint: str | None
    path: str
    notes: tuple[str, ...] = ()
    runs: tuple[ArmRun, ...] = ()


class VariancePart(Record):
    """One source of the variance of a difference: the items asked, or the training runs of an arm."""

    source: Literal["items", "runs of a", "runs of b"]
    variance: float
    degrees_of_freedom: float


class Look(Record):
    """A pair at one look of a sequential task, as it would stand if this had been the only one.

    `share` of the task's items had been scored, of which `n` are paired. The law of the difference follows
    from `higher`, `lower` and `ties` (at `effective_n` items, where they come in clusters), or from `center`
    and `variance_parts` (of the log ratio r for perplexities and bits); it has neither where nothing bounded
    the difference. `p_value` is this look's alone.
    """

    share: float
    n: int
    higher: int
    lower: int
    ties: int
    effective_n: float | None = None
    center: float | None = None
    variance_parts: tuple[VariancePart, ...] = ()
    bounded: bool
    p_value: float | None


class Pair(Record):
    """Arm `b` against arm `a` on one task and metric, paired by item.

    `difference` is b minus a in the metric's own units; `ci_low`, `ci_high` bound it at `level`
    (two-sided). `p_value` is None where no test applies, and `reason` then says why. `wins` counts items
    on which `b` is better, whatever the metric's direction. `mde` is the smallest difference detectable
    with power 0.8 at this n, in the metric's units; `n_needed` the items that would decide an inconclusive
    pair if the difference seen is the true one (None: no n would, or none is needed). `missing` counts items
    that only one arm answered or that have no value. `ratio` (b over a) is set for perplexities only.
    Undefined is None with a reason, never 0.

    `p_adjusted` is Holm's, over the primary lines of this pair of arms: verdicts rest on it. `p_bh` is
    Benjamini and Hochberg's, for exploration: over the same lines, and for the tasks of a group over the
    tasks of that group. `p_mid` is the mid-p value where the test is an exact one.

    `equivalent` (None without a margin, or where nothing bounds the difference) says whether the interval
    lies inside -margin to +margin; `p_equivalence` is the larger of the two one-sided p-values (TOST), below
    (1 - level) / 2 exactly where `equivalent` is true.

    `standard_error` is that of the t interval, None for other methods; for perplexities and bits it is of
    the log ratio r in nats. `variance_parts` are its square's parts; with one of them the interval is
    Student's with `degrees_of_freedom`, with several (training runs) it is Banerjee's and
    `degrees_of_freedom` is None. `clusters` counts the independent units where items come in clusters, else
    None; `effective_n` is what right-or-wrong items in clusters count for. `run_differences` are the
    differences of each training run, in the order of `Arm.runs` (of b where it has several, else of a), empty
    where both arms are one run; `between_runs_sd` is their standard deviation.

    `looks` is empty unless the comparison was sequential: then interval and p-values are those that hold at
    all looks together, and follow from it.
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
    p_mid: float | None = None
    p_bh: float | None = None
    equivalent: bool | None = None
    p_equivalence: float | None = None
    standard_error: float | None = None
    degrees_of_freedom: float | None = None
    variance_parts: tuple[VariancePart, ...] = ()
    clusters: int | None = None
    effective_n: float | None = None
    run_differences: tuple[float, ...] = ()
    between_runs_sd: float | None = None
    looks: tuple[Look, ...] = ()


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


class SuitePair(Record):
    """Arm `b` against arm `a` on the mean of several tasks; `difference` is the mean of their differences.

    The interval is two-sided at `level`; `degrees_of_freedom` is Satterthwaite's. Undefined is None, and
    `reason` says why.
    """

    a: str
    b: str
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    level: float
    standard_error: float | None
    degrees_of_freedom: float | None
    p_value: float | None
    mde: float | None
    method: str
    reason: str | None = None


class SuiteScore(Record):
    """Macro average: the mean over `tasks` of each task's main metric, every task counting the same.

    `role` None is over all tasks, else over those with that role. Only metrics from 0 to 1 of which more is
    better are averaged; `left_out` names the other tasks, each with its reason. It carries no verdict.
    """

    role: Literal["target", "guard", "other"] | None = None
    tasks: tuple[str, ...]
    left_out: dict[str, str] = Field(default_factory=dict)
    means: dict[str, float | None]
    pairs: tuple[SuitePair, ...]


class SequentialTask(Record):
    """How far a task of a sequential comparison went: `scored` of its `items`, at look number `look` (from 1)
    of the planned `looks` (items at each). All figures of the task and of its `leaves` are over these items.

    `stopped` says why: its rules of the gate or its verdicts were decided, or all items were scored. `tokens`
    counts the prompt tokens of the scored items, `tokens_asked` is what those of all items would be if the
    rest were as long on average.
    """

    task: str
    leaves: tuple[str, ...]
    items: int
    scored: int
    look: int
    looks: tuple[int, ...]
    stopped: Literal["gate", "verdict", "end"]
    tokens: int | None = None
    tokens_asked: int | None = None


class Sequential(Record):
    """What makes a comparison sequential: `method` with its `source`, the `seed` of the items' order, the
    `arms` whose answers decided when to stop, and how far each task went.
    """

    method: str
    source: str
    seed: int
    arms: tuple[str, ...]
    tasks: tuple[SequentialTask, ...]


class Comparison(Record):
    """`comparison.json`: what `compare` writes and every report is made from.

    `created` is when `compare` made it, in UTC (`2026-11-26T01:02:03+00:00`); None where nobody said so.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    title: str = ""
    created: str | None = None
    arms: tuple[Arm, ...]
    suite: dict[str, Any]
    tasks: tuple[TaskComparison, ...]
    suite_scores: tuple[SuiteScore, ...] = ()
    controls: dict[str, Any] = Field(default_factory=dict)
    gate: GateResult | None = None
    sequential: Sequential | None = None
    timing: dict[str, Any] = Field(default_factory=dict)
    packages: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
