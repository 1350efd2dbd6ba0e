"""The lines of a comparison: every task and metric, every pair of arms, tested, corrected and judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lora_eval.records import LoadedRun, Pair, TaskComparison
from lora_eval.stats.estimate import Estimate
from lora_eval.stats.multiple import holm
from lora_eval.stats.pairing import (
    ItemKey,
    Rows,
    aggregate,
    estimate_metric,
    index_rows,
    pair_rows,
    same_figure,
    whole_task_estimate,
)
from lora_eval.stats.tasks import Unit
from lora_eval.stats.verdict import judge

PairNames = tuple[str, str]


def build_tasks(
    runs: Mapping[str, LoadedRun], units: Sequence[Unit], pairs: Sequence[PairNames], level: float
) -> tuple[TaskComparison, ...]:
    """Return one record for each unit, with all pairs of arms.

    Raises:
        InputError: an item stands twice in a run, or was asked with two different prompts.
    """
    indexed = {unit: index_unit(runs, unit) for unit in units}
    estimates = {
        unit: {pair: estimate_pair(runs, unit, indexed[unit], pair, level) for pair in pairs}
        for unit in units
    }
    adjusted = adjust(units, pairs, estimates)
    return tuple(build_task(runs, unit, indexed[unit], pairs, estimates[unit], adjusted) for unit in units)


def index_unit(runs: Mapping[str, LoadedRun], unit: Unit) -> dict[str, Rows]:
    """Return each arm's rows of a task by item."""
    return {name: index_rows(run.rows, unit.leaves, unit.filter, name) for name, run in runs.items()}


def estimate_pair(
    runs: Mapping[str, LoadedRun], unit: Unit, rows: Mapping[str, Rows], pair: PairNames, level: float
) -> tuple[Estimate, int]:
    """Return the estimate of one pair on one task and metric, and the items that were left out."""
    paired = pair_rows(rows[pair[0]], rows[pair[1]], unit.metric, pair)
    figures = [unit.figure(runs[name]) for name in pair]
    own = [aggregate(list(rows[name].values()), unit.metric) for name in pair]
    if any(not rows[name] for name in pair) or all(
        same_figure(figure, mine) for figure, mine in zip(figures, own, strict=True)
    ):
        return estimate_metric(paired, unit.metric, level), paired.missing
    return whole_task_estimate(figures, len(paired.first), level), paired.missing


Estimates = Mapping[Unit, Mapping[PairNames, tuple[Estimate, int]]]


def adjust(
    units: Sequence[Unit], pairs: Sequence[PairNames], estimates: Estimates
) -> dict[tuple[Unit, PairNames], float | None]:
    """Return Holm's adjusted p-values: for each pair of arms, over the metrics that verdicts rest on."""
    primary = [unit for unit in units if unit.primary]
    adjusted: dict[tuple[Unit, PairNames], float | None] = {}
    for pair in pairs:
        values = holm([estimates[unit][pair][0].p_value for unit in primary])
        adjusted |= {(unit, pair): value for unit, value in zip(primary, values, strict=True)}
    return adjusted


def build_task(
    runs: Mapping[str, LoadedRun],
    unit: Unit,
    rows: Mapping[str, Rows],
    pairs: Sequence[PairNames],
    estimates: Mapping[PairNames, tuple[Estimate, int]],
    adjusted: Mapping[tuple[Unit, PairNames], float | None],
) -> TaskComparison:
    """Return the record of one task and metric."""
    answered = [_valued(rows[name], unit.metric) for name in runs]
    common, any_arm = set.intersection(*answered), set().union(*(rows[name].keys() for name in runs))
    return TaskComparison(
        task=unit.task,
        metric=unit.metric,
        filter=unit.filter,
        higher_is_better=unit.higher_is_better,
        role=unit.role,
        primary=unit.primary,
        n=len(common),
        means={name: unit.mean(run, list(rows[name].values())) for name, run in runs.items()},
        pairs=tuple(build_pair(unit, pair, *estimates[pair], adjusted.get((unit, pair))) for pair in pairs),
        dropped_items=len(any_arm) - len(common),
    )


def build_pair(
    unit: Unit, pair: PairNames, estimate: Estimate, missing: int, p_adjusted: float | None
) -> Pair:
    """Return the record of one pair: wins and losses in the metric's better direction, and the verdict."""
    found = judge(estimate, p_adjusted, higher_is_better=unit.higher_is_better, margin=unit.margin)
    verdict, reason, needed = found.verdict, found.reason, found.n_needed
    if not unit.primary:
        verdict, reason, needed = "inconclusive", "reported beside the main metric, not judged", None
    wins, losses = estimate.higher, estimate.lower
    if not unit.higher_is_better:
        wins, losses = losses, wins
    return Pair(
        a=pair[0],
        b=pair[1],
        n=estimate.n,
        difference=estimate.difference,
        ci_low=estimate.ci_low,
        ci_high=estimate.ci_high,
        level=estimate.level,
        p_value=estimate.p_value,
        p_adjusted=p_adjusted,
        method=estimate.method,
        wins=wins,
        losses=losses,
        ties=estimate.ties,
        mde=estimate.mde,
        margin=unit.margin,
        verdict=verdict,
        reason=reason,
        n_needed=needed,
        missing=missing,
        ratio=estimate.ratio,
        ratio_low=estimate.ratio_low,
        ratio_high=estimate.ratio_high,
    )


def _valued(rows: Rows, metric: str) -> set[ItemKey]:
    return {key for key, row in rows.items() if row.metrics.get(metric) is not None}
