"""The lines of a comparison: every task and metric, every pair of arms, tested, corrected and judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
    rows_of_tasks,
    same_figure,
    whole_task_estimate,
)
from lora_eval.stats.tasks import Unit
from lora_eval.stats.verdict import Judgement, judge

PairNames = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Line:
    """One pair of arms on one unit: the estimate, the items left out, and (where a verdict rests on it) its
    p-value adjusted among `tests`.
    """

    estimate: Estimate
    missing: int
    p_adjusted: float | None = None
    tests: int = 1


Lines = dict[Unit, dict[PairNames, Line]]


def build_tasks(
    runs: Mapping[str, LoadedRun], units: Sequence[Unit], pairs: Sequence[PairNames], level: float
) -> tuple[TaskComparison, ...]:
    """Return one record for each unit, with all pairs of arms.

    Raises:
        InputError: an item stands twice in a run, or was asked with two different prompts.
    """
    indexed = {name: index_rows(run.rows, name) for name, run in runs.items()}
    rows = {
        unit: {name: rows_of_tasks(own, unit.leaves, unit.filter) for name, own in indexed.items()}
        for unit in units
    }
    lines = {
        unit: {pair: compare_pair(runs, unit, rows[unit], pair, level) for pair in pairs} for unit in units
    }
    adjust(lines, pairs)
    return tuple(build_task(runs, unit, rows[unit], lines[unit]) for unit in units)


def compare_pair(
    runs: Mapping[str, LoadedRun], unit: Unit, rows: Mapping[str, Rows], pair: PairNames, level: float
) -> Line:
    """Return the estimate of one pair on one task and metric, and the items that were left out."""
    paired = pair_rows(rows[pair[0]], rows[pair[1]], unit.metric, pair)
    figures = [unit.figure(runs[name]) for name in pair]
    own = [aggregate(list(rows[name].values()), unit.metric) for name in pair]
    unanswered = any(not rows[name] for name in pair)
    if unanswered or all(same_figure(*figure) for figure in zip(figures, own, strict=True)):
        return Line(estimate_metric(paired, unit.metric, level), paired.missing)
    return Line(whole_task_estimate(figures, len(paired.first), level), paired.missing)


def adjust(lines: Lines, pairs: Sequence[PairNames]) -> None:
    """Set Holm's adjusted p-values in `lines`: for each pair, over the metrics that verdicts rest on."""
    primary = [unit for unit in lines if unit.primary]
    for pair in pairs:
        p_values = [lines[unit][pair].estimate.p_value for unit in primary]
        tests = max(1, sum(value is not None for value in p_values))
        for unit, adjusted in zip(primary, holm(p_values), strict=True):
            lines[unit][pair] = replace(lines[unit][pair], p_adjusted=adjusted, tests=tests)


def build_task(
    runs: Mapping[str, LoadedRun], unit: Unit, rows: Mapping[str, Rows], lines: Mapping[PairNames, Line]
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
        pairs=tuple(build_pair(unit, pair, line) for pair, line in lines.items()),
        dropped_items=len(any_arm) - len(common),
    )


def build_pair(unit: Unit, pair: PairNames, line: Line) -> Pair:
    """Return the record of one pair: wins and losses in the metric's better direction, and the verdict."""
    estimate = line.estimate
    wins, losses = estimate.higher, estimate.lower
    if not unit.higher_is_better:
        wins, losses = losses, wins
    judgement = Judgement("inconclusive", "reported beside the main metric, not judged", None)
    if unit.primary:
        judgement = judge(
            estimate,
            line.p_adjusted,
            higher_is_better=unit.higher_is_better,
            margin=unit.margin,
            tests=line.tests,
        )
    return Pair(
        a=pair[0],
        b=pair[1],
        n=estimate.n,
        difference=estimate.difference,
        ci_low=estimate.ci_low,
        ci_high=estimate.ci_high,
        level=estimate.level,
        p_value=estimate.p_value,
        p_adjusted=line.p_adjusted,
        method=estimate.method,
        wins=wins,
        losses=losses,
        ties=estimate.ties,
        mde=estimate.mde,
        margin=unit.margin,
        verdict=judgement.verdict,
        reason=judgement.reason,
        n_needed=judgement.n_needed,
        missing=line.missing,
        ratio=estimate.ratio,
        ratio_low=estimate.ratio_low,
        ratio_high=estimate.ratio_high,
    )


def _valued(rows: Rows, metric: str) -> set[ItemKey]:
    return {key for key, row in rows.items() if row.metrics.get(metric) is not None}
