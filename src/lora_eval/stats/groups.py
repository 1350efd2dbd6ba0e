"""Groups whose figure is the plain mean over their tasks, however many items each has.

lm-eval's groups with `weight_by_size: false` (BLiMP, XNLI and others) are such; a group whose tasks count by
their items (MMLU) is one task over all its items and needs nothing of this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from lora_eval.records import SampleRow, VariancePart
from lora_eval.stats.differences import Centers, detectable, number_clusters, robust_mean
from lora_eval.stats.estimate import Estimate, Values, counts
from lora_eval.stats.pairing import (
    LIKELIHOOD_METRICS,
    PairedRows,
    Rows,
    aggregate,
    clusters_of,
    same_figure,
    values_of,
)
from lora_eval.stats.suite import TaskDifference, item_part, macro_law, macro_method, unchanged_reason


def is_plain_mean(figure: float | None, rows: Rows, leaves: Sequence[str], metric: str) -> bool:
    """Whether an arm's figure of a group is the mean of its tasks' figures."""
    if len(leaves) < 2 or metric in LIKELIHOOD_METRICS or figure is None:
        return False
    means = [aggregate([row for row in rows.values() if row.task == leaf], metric) for leaf in leaves]
    known = [mean for mean in means if mean is not None]
    return len(known) == len(leaves) and same_figure(figure, math.fsum(known) / len(known))


def estimate_group(
    paired: PairedRows,
    leaves: Sequence[str],
    metric: str,
    level: float,
    estimate_of: Callable[[PairedRows], tuple[Estimate, Centers]],
) -> tuple[Estimate, Centers]:
    """Return b minus a of a group as the macro average of its tasks, and the training runs' differences.

    `estimate_of` gives the same of one task.
    """
    tasks, unknown = [], []
    for leaf in leaves:
        estimate, runs = estimate_of(_only(paired, leaf))
        tasks.append(TaskDifference(leaf, estimate.difference or 0.0, item_part(estimate), runs))
        if tasks[-1].items is None and (estimate.changed or estimate.p_value is None):
            unknown.append(f"{leaf}: {estimate.reason}")
    shared = _shared_part(paired, leaves, metric)
    law = None if unknown else macro_law(tasks, shared)
    units = round(shared.degrees_of_freedom) + 1 if shared and law and law.parts[0] == shared else None
    low, high = law.interval(level) if law else (None, None)
    higher, lower, ties = counts(*(_values(rows, metric) for rows in (paired.first, paired.second)))
    runs = {source: _means([task.runs[source] for task in tasks]) for source in tasks[0].runs}
    found = Estimate(
        n=len(paired.first),
        difference=math.fsum(task.difference for task in tasks) / len(tasks),
        ci_low=low,
        ci_high=high,
        level=level,
        p_value=law.p_two_sided() if law else None,
        method=macro_method(tasks, units),
        higher=higher,
        lower=lower,
        ties=ties,
        mde=detectable(law, level),
        reason="; ".join(unknown) or unchanged_reason(tasks),
        clusters=units,
        run_differences=tuple(runs.get("runs of b", runs.get("runs of a", ()))),
        law=law,
    )
    return found, runs


def _shared_part(paired: PairedRows, leaves: Sequence[str], metric: str) -> VariancePart | None:
    """The variance of the mean of means by cluster; None where no cluster reaches over several tasks.

    With w_i = 1 / (T n_t) for an item of task t, SE^2 = G/(G-1) sum_g (sum_{i in g} w_i (d_i - mean_t))^2:
    `robust_mean` of what is left of each task's mean. Reference: `statsmodels` OLS on one constant for each
    task, `cov_type="cluster"`, without its factor (n - 1) / (n - T).
    """
    labels = clusters_of(paired.first)
    tasks = np.array([row.task for row in paired.first])
    if labels is None or len(set(zip(labels, tasks, strict=True))) == len(set(labels)):
        return None
    change = _values(paired.second, metric) - _values(paired.first, metric)
    weights = np.zeros(len(change))
    for leaf in leaves:
        own = tasks == leaf
        change[own] -= math.fsum(change[own]) / own.sum()
        weights[own] = 1.0 / (len(leaves) * own.sum())
    error = robust_mean(weights * change, weights, number_clusters(labels, len(labels)))
    if error.standard_error is None:
        return None
    return VariancePart(
        source="items", variance=error.standard_error**2, degrees_of_freedom=error.clusters - 1
    )


def _only(paired: PairedRows, task: str) -> PairedRows:
    places = [i for i, row in enumerate(paired.first) if row.task == task]
    return PairedRows(tuple(paired.first[i] for i in places), tuple(paired.second[i] for i in places), 0)


def _values(rows: Sequence[SampleRow], metric: str) -> Values:
    return np.array(values_of(rows, metric), dtype=np.float64)


def _means(runs: Sequence[Sequence[float]]) -> list[float]:
    """The mean over the tasks, for each training run."""
    return [math.fsum(values) / len(values) for values in zip(*runs, strict=True)]
