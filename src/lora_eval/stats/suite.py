"""Macro average: the mean of several tasks' differences, every task counting the same.

The tasks' items are drawn apart from each other, so with the two models given the tasks are independent:
D = (1/T) sum_t d_t and Var(D) = (1/T^2) sum_t Var(d_t). Each Var(d_t) is the task's own (paired, by cluster);
for right-or-wrong items it is the posterior's, which is never 0. Its degrees of freedom are Satterthwaite's
(1946, Biometrics Bulletin 2:110): (sum V_t)^2 / sum (V_t^2 / f_t). Training runs act on all tasks at once, so
their part is taken from the macro averages of the runs, not task by task.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lora_eval.records import SuitePair, VariancePart
from lora_eval.stats.differences import Source, detectable
from lora_eval.stats.estimate import Estimate
from lora_eval.stats.laws import DirichletLaw, StudentLaw


@dataclass(frozen=True, slots=True)
class TaskDifference:
    """A task's difference, with the part of its variance that its items make (None: no item's score differs).

    `runs` holds the differences of each training run, by the arm that has several.
    """

    task: str
    difference: float
    items: VariancePart | None
    runs: Mapping[Source, Sequence[float]]


def item_part(estimate: Estimate) -> VariancePart | None:
    """Return the variance of a difference that comes from the items; None where nothing tells it."""
    law = estimate.law
    if isinstance(law, StudentLaw):
        return law.parts[0]
    if isinstance(law, DirichletLaw):
        items = law.wins + law.losses + law.ties
        return VariancePart(source="items", variance=law.variance, degrees_of_freedom=max(items - 1.0, 1.0))
    return None


def macro_average(names: tuple[str, str], tasks: Sequence[TaskDifference], level: float = 0.95) -> SuitePair:
    """Return the mean difference of the tasks for arm b against arm a, with interval and test.

    Tasks on which no item's score differs count with a difference of 0 that is taken as certain; `reason`
    names them.
    """
    law = macro_law(tasks)
    low, high = law.interval(level) if law else (None, None)
    return SuitePair(
        a=names[0],
        b=names[1],
        difference=math.fsum(task.difference for task in tasks) / len(tasks),
        ci_low=low,
        ci_high=high,
        level=level,
        standard_error=law.standard_error if law else None,
        degrees_of_freedom=law.parts[0].degrees_of_freedom if law and len(law.parts) == 1 else None,
        p_value=law.p_two_sided() if law else None,
        mde=detectable(law, level),
        method=macro_method(tasks),
        reason=unchanged_reason(tasks),
    )


def macro_law(tasks: Sequence[TaskDifference], shared: VariancePart | None = None) -> StudentLaw | None:
    """Return the law of the mean of the tasks' differences; None where nothing varies.

    `shared` is the variance of that mean where tasks share items, which then are not independent. It counts
    where it is larger than that of independent tasks: rare changes alone can make it too small.
    """
    parts = [part for task in tasks if (part := task.items) is not None and part.variance > 0]
    found = [*([shared] if shared else []), *([_pooled(parts, len(tasks))] if parts else [])]
    items = [max(found, key=lambda part: part.variance)] if found else []
    center = math.fsum(task.difference for task in tasks) / len(tasks)
    law = StudentLaw(center, (*items, *_run_parts(tasks)))
    return law if law.parts and law.standard_error > 0 else None


def macro_method(tasks: Sequence[TaskDifference], clusters: int | None = None) -> str:
    """Return the method's name as the record and the reports show it; `clusters` that tasks share, if any."""
    counted = [f"{len(runs)} training runs" for runs in tasks[0].runs.values()]
    law = "t (Satterthwaite)" if clusters is None else f"cluster-robust t ({clusters} clusters)"
    return " and ".join([f"macro average of {len(tasks)} tasks, {law}", *counted])


def unchanged_reason(tasks: Sequence[TaskDifference]) -> str | None:
    """Return which tasks are taken as certain because no item's score differs on them."""
    names = [task.task for task in tasks if task.items is None]
    return f"no item's score differs on {', '.join(names)}, which is taken as certain" if names else None


def _pooled(parts: Sequence[VariancePart], tasks: int) -> VariancePart:
    total = math.fsum(part.variance for part in parts)
    freedom = total**2 / math.fsum(part.variance**2 / part.degrees_of_freedom for part in parts)
    return VariancePart(source="items", variance=total / tasks**2, degrees_of_freedom=freedom)


def _run_parts(tasks: Sequence[TaskDifference]) -> list[VariancePart]:
    """For each arm with training runs the variance of the mean of its runs' macro averages."""
    found = []
    for source in tasks[0].runs:
        averages = np.mean([task.runs[source] for task in tasks], axis=0)
        variance = float(np.var(averages, ddof=1)) / len(averages)
        found.append(VariancePart(source=source, variance=variance, degrees_of_freedom=len(averages) - 1))
    return found
