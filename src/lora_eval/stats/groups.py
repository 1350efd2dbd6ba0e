"""Groups whose figure is the plain mean over their tasks, however many items each has.

lm-eval's groups with `weight_by_size: false` (BLiMP, XNLI and others) are such; a group whose tasks count by
their items (MMLU) is one task over all its items and needs nothing of this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from lora_eval.records import SampleRow
from lora_eval.stats.differences import Centers, detectable
from lora_eval.stats.estimate import Estimate, Values, counts
from lora_eval.stats.pairing import LIKELIHOOD_METRICS, PairedRows, Rows, aggregate, same_figure, values_of
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
    tasks = []
    for leaf in leaves:
        estimate, runs = estimate_of(_only(paired, leaf))
        tasks.append(TaskDifference(leaf, estimate.difference or 0.0, item_part(estimate), runs))
    law = macro_law(tasks)
    low, high = law.interval(level) if law else (None, None)
    first, second = (_values(rows, metric) for rows in (paired.first, paired.second))
    higher, lower, ties = counts(first, second)
    runs = {source: _means([task.runs[source] for task in tasks]) for source in tasks[0].runs}
    found = Estimate(
        n=len(paired.first),
        difference=math.fsum(task.difference for task in tasks) / len(tasks),
        ci_low=low,
        ci_high=high,
        level=level,
        p_value=law.p_two_sided() if law else None,
        method=macro_method(tasks),
        higher=higher,
        lower=lower,
        ties=ties,
        mde=detectable(law, level),
        reason=unchanged_reason(tasks),
        run_differences=tuple(runs.get("runs of b", runs.get("runs of a", ()))),
        law=law,
    )
    return found, runs


def _only(paired: PairedRows, task: str) -> PairedRows:
    places = [i for i, row in enumerate(paired.first) if row.task == task]
    return PairedRows(tuple(paired.first[i] for i in places), tuple(paired.second[i] for i in places), 0)


def _values(rows: Sequence[SampleRow], metric: str) -> Values:
    return np.array(values_of(rows, metric), dtype=np.float64)


def _means(runs: Sequence[Sequence[float]]) -> list[float]:
    """The mean over the tasks, for each training run."""
    return [math.fsum(values) / len(values) for values in zip(*runs, strict=True)]
