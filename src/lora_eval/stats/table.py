"""The records of a comparison: every task and metric with all pairs of arms, and the macro averages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import Any

from lora_eval.records import LoadedRun, Pair, SuiteScore, TaskComparison
from lora_eval.stats.equivalence import equivalence
from lora_eval.stats.estimate import Estimate
from lora_eval.stats.laws import ScaledLaw, StudentLaw
from lora_eval.stats.lines import Asked, Line, Lines, PairNames, compare_units
from lora_eval.stats.pairing import LIKELIHOOD_METRICS, ItemKey, Rows
from lora_eval.stats.sequential import SequentialLaw
from lora_eval.stats.suite import TaskDifference, macro_average
from lora_eval.stats.tasks import Unit
from lora_eval.stats.verdict import Judgement, judge


def build_tasks(
    asked: Asked, units: Sequence[Unit], pairs: Sequence[PairNames]
) -> tuple[tuple[TaskComparison, ...], tuple[SuiteScore, ...]]:
    """Return one record for each unit, with all pairs of arms, and the macro averages over units.

    Raises:
        InputError: an item stands twice in a run, was asked with two different prompts, or a resampling
            method has too few items on some task.
    """
    lines, rows = compare_units(asked, units, pairs)
    tasks = tuple(build_task(asked.runs, unit, rows[unit], lines[unit]) for unit in units)
    return tasks, suite_scores(lines, tasks, pairs, asked.level)


def suite_scores(
    lines: Lines, tasks: Sequence[TaskComparison], pairs: Sequence[PairNames], level: float
) -> tuple[SuiteScore, ...]:
    """Return the macro average over all primary tasks, and over those of each role where roles differ."""
    units = {(unit.task, unit.metric, unit.filter): unit for unit in lines}
    primary = {units[(task.task, task.metric, task.filter)]: task for task in tasks if task.primary}
    roles = list(dict.fromkeys(unit.role for unit in primary))
    scores = []
    for role in (None, *(roles if len(roles) > 1 else ())):
        chosen = {unit: task for unit, task in primary.items() if role in (None, unit.role)}
        left_out = {
            unit.task: why for unit, task in chosen.items() if (why := _not_averaged(lines, unit, task))
        }
        kept = {unit: task for unit, task in chosen.items() if unit.task not in left_out}
        if len(kept) < 2:
            continue
        scores.append(
            SuiteScore(
                role=role,
                tasks=tuple(unit.task for unit in kept),
                left_out=left_out,
                means=_mean_of_means(list(kept.values())),
                pairs=tuple(
                    macro_average(pair, [_task_difference(unit, lines[unit][pair]) for unit in kept], level)
                    for pair in pairs
                ),
            )
        )
    return tuple(scores)


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
    same = equivalence(estimate, unit.margin)
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
        p_bh=line.p_bh,
        equivalent=same.equivalent,
        p_equivalence=same.p_value,
        **_details(estimate),
    )


def _details(estimate: Estimate) -> dict[str, Any]:
    """What a pair records so that its figures can be made again at another level."""
    law = estimate.law.law if isinstance(estimate.law, ScaledLaw) else estimate.law
    student = law if isinstance(law, StudentLaw) else None
    parts = student.parts if student else ()
    return {
        "p_mid": estimate.p_mid,
        "standard_error": student.standard_error if student else None,
        "degrees_of_freedom": parts[0].degrees_of_freedom if len(parts) == 1 else None,
        "variance_parts": parts,
        "clusters": estimate.clusters,
        "effective_n": estimate.effective_n,
        "run_differences": estimate.run_differences,
        "between_runs_sd": stdev(estimate.run_differences) if estimate.run_differences else None,
        "looks": law.looks if isinstance(law, SequentialLaw) else (),
    }


def _valued(rows: Rows, metric: str) -> set[ItemKey]:
    return {key for key, row in rows.items() if row.metrics.get(metric) is not None}


def _not_averaged(lines: Lines, unit: Unit, task: TaskComparison) -> str | None:
    """Why a task stays out of the macro average, None where it is in."""
    if unit.metric in LIKELIHOOD_METRICS or any(
        mean is not None and not 0 <= mean <= 1 for mean in task.means.values()
    ):
        return f"{unit.metric} is no share from 0 to 1"
    if not unit.higher_is_better:
        return f"less {unit.metric} is better"
    for pair, line in lines[unit].items():
        unknown = line.items is None and (line.estimate.changed or line.estimate.p_value is None)
        if line.estimate.difference is None or unknown:
            return f"{pair[1]} against {pair[0]}: {line.estimate.reason or line.estimate.method}"
    return None


def _mean_of_means(tasks: Sequence[TaskComparison]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for arm in tasks[0].means:
        values = [task.means[arm] for task in tasks]
        known = [value for value in values if value is not None]
        found[arm] = math.fsum(known) / len(known) if len(known) == len(values) else None
    return found


def _task_difference(unit: Unit, line: Line) -> TaskDifference:
    return TaskDifference(unit.task, line.estimate.difference or 0.0, line.items, line.runs)
