"""What a comparison will be able to find, said before it runs: from the number of items and an assumption.

What decides is how many items the arms answer differently. Before a run that is assumed, twice: 10 % and
20 %, a usual and a large change of a fine-tuning (docs/statistics.md). An earlier comparison of the same
tasks says it better. Formulas: `stats.power`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from lora_eval.records import Comparison, Gate, GateRule, Pair
from lora_eval.stats.gate import threshold_of
from lora_eval.stats.gate_rules import base_name
from lora_eval.stats.pairing import LIKELIHOOD_METRICS
from lora_eval.stats.power import POWER, mcnemar_mde, mcnemar_n, normal_mde

CHANGED = (0.1, 0.2)
POINTS = (0.02, 0.05)


@dataclass(frozen=True, slots=True)
class AskedTask:
    """A task that will be run: how many items, and the metric and margin of its verdict."""

    task: str
    items: int
    metric: str | None
    margin: float | None


@dataclass(frozen=True, slots=True)
class RulePlan:
    """A rule of the gate on a task, `threshold` being the gain that its bound must be above.

    `passes_at` is the true gain with which it passes with power 0.8 at the planned items; `items` as many as
    it takes if nothing has changed (None: a gain is asked for, or nothing is known of the metric).
    """

    rule: int
    condition: str
    threshold: float
    level: float
    passes_at: float | None
    items: int | None


@dataclass(frozen=True, slots=True)
class Needed:
    """The items that find `difference` with power 0.8 after Holm's correction; of a `margin`, those that show
    it held if nothing has changed (each margin is a claim of its own, not corrected).
    """

    difference: float
    items: int
    margin: bool


@dataclass(frozen=True, slots=True)
class Case:
    """A task under one assumption. `changed` is the share of items with another score in the two arms (None:
    no right-or-wrong items). `source` is `assumed`, or says on how many items an earlier comparison measured
    it. `detectable` is the smallest difference found with power 0.8 at the level that Holm's method asks for
    in the worst case.
    """

    changed: float | None
    source: str
    detectable: float | None
    needed: tuple[Needed, ...]
    rules: tuple[RulePlan, ...]


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """One task. `cases` is empty where nothing can be assumed, and `reason` says why."""

    task: str
    items: int
    metric: str | None
    margin: float | None
    cases: tuple[Case, ...]
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Every task, tested together: Holm's method over `tests` p-values, two-sided at `level`."""

    level: float
    power: float
    tests: int
    tasks: tuple[TaskPlan, ...]


@dataclass(frozen=True, slots=True)
class _Spread:
    """What one assumption says: the smallest difference at so many items, or the items for a difference."""

    changed: float | None
    source: str
    pair: Pair | None = None

    def detectable(self, n: float, level: float) -> float | None:
        if self.changed is not None:
            return mcnemar_mde(n, self.changed * n, level)
        if self.pair is None or not self.pair.mde:
            return None
        factor = normal_mde(1.0, level) / normal_mde(1.0, self.pair.level)
        return self.pair.mde * factor * math.sqrt(self.pair.n / n)

    def needed(self, distance: float, level: float) -> int | None:
        if self.changed is not None:
            if distance >= 1.0:
                return None  # the metric is no share, so nothing is known of it
            return math.ceil(mcnemar_n(max(self.changed, distance), distance, level))
        at_one = self.detectable(1.0, level)
        return None if at_one is None else math.ceil((at_one / distance) ** 2)


def plan_comparison(
    tasks: Sequence[AskedTask],
    *,
    gate: Gate | None = None,
    earlier: Comparison | None = None,
    level: float = 0.95,
) -> Plan:
    """Return what a comparison of these tasks can find; where `earlier` has a task, by its figures."""
    return Plan(
        level=level,
        power=POWER,
        tests=max(1, len(tasks)),
        tasks=tuple(_plan_task(task, len(tasks), gate, earlier, level) for task in tasks),
    )


def _plan_task(
    task: AskedTask, tests: int, gate: Gate | None, earlier: Comparison | None, level: float
) -> TaskPlan:
    measured = _measured(task, earlier)
    if measured is None and task.metric in LIKELIHOOD_METRICS:
        reason = "nothing is known of its spread before a first run; give --out a folder with one"
        return TaskPlan(task.task, task.items, task.metric, task.margin, (), reason)
    spreads = [measured] if measured else [_Spread(share, "assumed") for share in CHANGED]
    strict = 1.0 - (1.0 - level) / max(1, tests)
    cases = tuple(
        Case(
            spread.changed,
            spread.source,
            spread.detectable(task.items, strict),
            _needed(task, spread, level, strict),
            _plan_rules(task, spread, gate),
        )
        for spread in spreads
    )
    return TaskPlan(task.task, task.items, task.metric, task.margin, cases)


def _needed(task: AskedTask, spread: _Spread, level: float, strict: float) -> tuple[Needed, ...]:
    """Items for the margin, or for 2 and 5 points where the metric is a share."""
    if task.margin is not None:
        ways = [(task.margin, spread.needed(task.margin, level))]
    else:
        points = () if task.metric in LIKELIHOOD_METRICS else POINTS
        ways = [(distance, spread.needed(distance, strict)) for distance in points]
    return tuple(Needed(distance, n, task.margin is not None) for distance, n in ways if n is not None)


def _plan_rules(task: AskedTask, spread: _Spread, gate: Gate | None) -> tuple[RulePlan, ...]:
    """What each rule that names the task needs; the bound is one-sided and not corrected for other rules."""
    if gate is None:
        return ()
    confidence = 2.0 * gate.level - 1.0
    found = []
    for index, rule in enumerate(gate.rules):
        if not _is_of(rule, task):
            continue
        threshold = threshold_of(rule.condition, rule.limit)
        known = spread.changed is None or abs(threshold) < 1.0  # a share changes by less than 1
        at = spread.detectable(task.items, confidence) if known else None
        items = spread.needed(-threshold, confidence) if threshold < 0 else None
        if items is not None and rule.min_n is not None:
            items = max(items, rule.min_n)
        passes = None if at is None else threshold + at
        found.append(RulePlan(index, rule.condition, threshold, gate.level, passes, items))
    return tuple(found)


def _is_of(rule: GateRule, task: AskedTask) -> bool:
    """Whether the rule bounds a gain of the task's main metric; ratios of perplexities have a scale of their
    own.
    """
    if rule.condition == "max_perplexity_ratio":
        return False
    metric = rule.metric.partition(",")[0].strip() if rule.metric else task.metric
    return metric == task.metric and (rule.task == task.task or fnmatchcase(task.task, rule.task))


def _measured(task: AskedTask, earlier: Comparison | None) -> _Spread | None:
    """The spread of an earlier comparison: of the arm that differs most from its base."""
    if earlier is None:
        return None
    base = base_name(earlier)
    pairs = [
        pair
        for line in earlier.tasks
        if line.primary and line.task == task.task and task.metric in (None, line.metric)
        for pair in line.pairs
        if pair.a == base and pair.mde is not None and pair.n
    ]
    pair = max(pairs, key=lambda each: each.mde or 0.0, default=None)
    if pair is None:
        return None
    changed = (pair.wins + pair.losses) / pair.n if pair.method.startswith("exact McNemar") else None
    return _Spread(changed, f"measured on {pair.n:,} items", pair)
