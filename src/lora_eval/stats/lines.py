"""Every pair of arms on every unit: the estimate, and p-values adjusted for the number of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lora_eval.records import LoadedRun, VariancePart
from lora_eval.stats.differences import Centers, Method, Source
from lora_eval.stats.estimate import Estimate
from lora_eval.stats.groups import estimate_group, is_plain_mean
from lora_eval.stats.looks import Looks, estimate_looks
from lora_eval.stats.multiple import benjamini_hochberg, holm
from lora_eval.stats.pairing import (
    PairedRows,
    Rows,
    aggregate,
    count_units,
    estimate_metric,
    index_rows,
    pair_rows,
    row_key,
    rows_of_tasks,
    run_center,
    same_figure,
    whole_task_estimate,
)
from lora_eval.stats.resampling import check_units, raise_refused
from lora_eval.stats.suite import item_part
from lora_eval.stats.tasks import Unit

PairNames = tuple[str, str]
# Training runs by the name of the arm that is their mean.
Members = Mapping[str, Sequence[LoadedRun]]


@dataclass(frozen=True, slots=True)
class Line:
    """One pair of arms on one unit: the estimate, the items left out, the training runs' differences, and
    (where a verdict rests on it) its p-value adjusted among `tests`. `items` is the variance that the items
    make. `refused` says why the method asked for was not used.
    """

    estimate: Estimate
    missing: int
    runs: Centers
    items: VariancePart | None = None
    refused: str | None = None
    p_adjusted: float | None = None
    p_bh: float | None = None
    tests: int = 1


Lines = dict[Unit, dict[PairNames, Line]]
UnitRows = dict[Unit, dict[str, Rows]]


@dataclass(frozen=True, slots=True)
class Asked:
    """The runs compared, by arm; the training runs of arms that have several; how they are compared; of a
    sequential comparison the looks at each task.
    """

    runs: Mapping[str, LoadedRun]
    members: Members
    level: float
    method: Method
    looks: Mapping[str, Looks] = field(default_factory=dict)


def compare_units(asked: Asked, units: Sequence[Unit], pairs: Sequence[PairNames]) -> tuple[Lines, UnitRows]:
    """Return every unit's line for every pair, adjusted, and every unit's rows by arm.

    Raises:
        InputError: an item stands twice in a run, was asked with two different prompts, or a resampling
            method has too few items on some task.
    """
    indexed = {name: index_rows(run.rows, name) for name, run in asked.runs.items()}
    members = {
        name: [index_rows(run.rows, run.run.arm) for run in runs] for name, runs in asked.members.items()
    }
    rows = {
        unit: {name: rows_of_tasks(own, unit.leaves, unit.filter) for name, own in indexed.items()}
        for unit in units
    }
    lines: Lines = {}
    for unit in units:
        own = {
            name: [rows_of_tasks(run, unit.leaves, unit.filter) for run in runs]
            for name, runs in members.items()
        }
        lines[unit] = {pair: compare_pair(asked, unit, rows[unit], own, pair) for pair in pairs}
    check_refused(lines)
    adjust(lines, pairs)
    return lines, rows


def compare_pair(
    asked: Asked,
    unit: Unit,
    rows: Mapping[str, Rows],
    members: Mapping[str, Sequence[Rows]],
    pair: PairNames,
) -> Line:
    """Return the estimate of one pair on one task and metric, and the items that were left out."""
    paired = pair_rows(rows[pair[0]], rows[pair[1]], unit.metric, pair)
    figures = [unit.figure(asked.runs[name]) for name in pair]
    own = [aggregate(list(rows[name].values()), unit.metric) for name in pair]
    unanswered = any(not rows[name] for name in pair)
    looks = asked.looks.get(unit.task)
    if not unanswered and not all(same_figure(*figure) for figure in zip(figures, own, strict=True)):
        once = looks is None or len(looks.sizes) == 1  # no law of several looks at a mean over tasks
        if (
            once
            and {row.task for row in paired.first} == set(unit.leaves)
            and all(
                is_plain_mean(figure, rows[name], unit.leaves, unit.metric)
                for figure, name in zip(figures, pair, strict=True)
            )
        ):
            return compare_group(asked, unit, paired, members, pair)
        whole = whole_task_estimate(figures, len(paired.first), asked.level)
        return Line(whole, paired.missing, {})
    if looks is not None:

        def estimate_of(part: PairedRows) -> Estimate:
            centers = run_centers(members, unit.metric, part, pair)
            return estimate_metric(part, unit.metric, asked.level, runs=centers)

        return Line(estimate_looks(paired, looks, estimate_of), paired.missing, {})
    runs = run_centers(members, unit.metric, paired, pair)
    estimate = estimate_metric(paired, unit.metric, asked.level, runs=runs)
    items, refused = item_part(estimate), None
    if asked.method != "auto" and paired.first:
        refused = _refusal(asked.method, paired, runs)
        if refused is None:
            estimate = estimate_metric(paired, unit.metric, asked.level, method=asked.method)
    return Line(estimate, paired.missing, runs, items, refused)


def compare_group(
    asked: Asked,
    unit: Unit,
    paired: PairedRows,
    members: Mapping[str, Sequence[Rows]],
    pair: PairNames,
) -> Line:
    """Return the line of a group whose figure is the plain mean over its tasks."""

    def estimate_of(part: PairedRows) -> tuple[Estimate, Centers]:
        centers = run_centers(members, unit.metric, part, pair)
        return estimate_metric(part, unit.metric, asked.level, runs=centers), centers

    estimate, runs = estimate_group(paired, unit.leaves, unit.metric, asked.level, estimate_of)
    refused = None
    if asked.method != "auto":
        refused = f"--method {asked.method} is for means of items, and this group's figure is a mean of tasks"
    return Line(estimate, paired.missing, runs, item_part(estimate), refused)


def run_centers(
    members: Mapping[str, Sequence[Rows]], metric: str, paired: PairedRows, pair: PairNames
) -> Centers:
    """Return each training run's difference, by the arm that has several, on the items that were paired."""
    if not paired.first:
        return {}
    sides: list[tuple[Source, str]] = [("runs of a", pair[0]), ("runs of b", pair[1])]
    found: dict[Source, list[float]] = {}
    for source, arm in sides:
        for rows in members.get(arm, ()):
            single = tuple(rows[row_key(row)] for row in paired.first)
            both = (paired.first, single) if source == "runs of b" else (single, paired.second)
            found.setdefault(source, []).append(run_center(PairedRows(*both, 0), metric))
    return found


def check_refused(lines: Lines) -> None:
    """InputError where a verdict should rest on a method that has too few items; names all such tasks."""
    refused = {
        unit.task: line.refused
        for unit, own in lines.items()
        for line in own.values()
        if unit.primary and line.refused
    }
    raise_refused(refused)


def adjust(lines: Lines, pairs: Sequence[PairNames]) -> None:
    """Set the adjusted p-values in `lines`, for each pair: Holm's over the metrics that verdicts rest on,
    Benjamini and Hochberg's over the same and, for looking around, over the tasks of each group.
    """
    primary = [unit for unit in lines if unit.primary]
    groups = [
        [unit for unit in lines if not unit.primary and unit.task != group.task and unit.task in group.leaves]
        for group in primary
    ]
    for pair in pairs:
        p_values = [lines[unit][pair].estimate.p_value for unit in primary]
        tests = max(1, sum(value is not None for value in p_values))
        for unit, adjusted in zip(primary, holm(p_values), strict=True):
            lines[unit][pair] = replace(lines[unit][pair], p_adjusted=adjusted, tests=tests)
        for family in (primary, *groups):
            rates = benjamini_hochberg([lines[unit][pair].estimate.p_value for unit in family])
            for unit, rate in zip(family, rates, strict=True):
                lines[unit][pair] = replace(lines[unit][pair], p_bh=rate)


def _refusal(method: Method, paired: PairedRows, runs: Centers) -> str | None:
    """Why a resampling method is not used on these items, None where it is."""
    if runs:
        return f"--method {method} knows one source of variation, and an arm has several training runs"
    return check_units(count_units(paired), method)
