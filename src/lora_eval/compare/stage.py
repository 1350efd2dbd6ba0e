"""Every pair of arms, task by task, with interval, test and verdict: runs in, the record out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_eval.compare.describe import (
    describe_arm,
    describe_suite,
    missing_task_notes,
    package_notes,
    run_timing,
)
from lora_eval.compare.files import load_runs
from lora_eval.compare.pairs import check_pairable, check_pairs, default_pairs, mean_arms
from lora_eval.records import Comparison, EvalSuite, LoadedRun, Sequential
from lora_eval.stats.differences import Method
from lora_eval.stats.estimate import check_level
from lora_eval.stats.lines import Asked, PairNames
from lora_eval.stats.looks import check_looks
from lora_eval.stats.table import build_tasks
from lora_eval.stats.tasks import list_units


def compare_runs(runs: Mapping[str, Path], **options: Any) -> Comparison:
    """Return the comparison of stored runs; arm name -> run folder, and the options of `compare_loaded`.

    Raises:
        InputError: a folder holds no complete run, or the runs cannot be paired.
    """
    return compare_loaded(load_runs(runs), **options)


def compare_loaded(
    runs: Mapping[str, LoadedRun],
    *,
    suite: EvalSuite | None = None,
    pairs: Sequence[PairNames] | None = None,
    more_pairs: Sequence[PairNames] = (),
    training_runs: Mapping[str, Sequence[str]] | None = None,
    method: Method = "auto",
    level: float = 0.95,
    margins: Mapping[str, float] | None = None,
    controls: Mapping[str, Any] | None = None,
    timing: Mapping[str, Any] | None = None,
    arm_notes: Mapping[str, Sequence[str]] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    sequential: Sequential | None = None,
    notes: Sequence[str] = (),
    title: str = "",
) -> Comparison:
    """Return the comparison of runs in memory.

    `suite` says which metric a task's verdict rests on, its role and margin; without it each task's first
    metric counts. `pairs` are (a, b) for b against a; the default is `default_pairs`, and `more_pairs` are
    compared beside them. `training_runs` maps an arm to those of `runs` that are trainings of it: it is
    compared as their mean, and they are no arms of their own. `method` is `auto`, `bootstrap` (BCa interval,
    sign-flip test) or `permutation` (sign-flip test). `margins` (by task, in the metric's units) go before
    the suite's. `groups` maps a group to its tasks; without it, tasks that the suite names only through their
    group are found by the group's name. `sequential` says how runs were stopped early: intervals and p-values
    then hold at every look, and there is no macro average.

    Raises:
        InputError: runs of different suites or seeds, unfinished or stopped early without `sequential`,
            unknown names, unequal prompts, or too few items for `method`.
    """
    check_level(level)
    check_pairable(runs)
    members = {arm: {name: runs[name] for name in names} for arm, names in (training_runs or {}).items()}
    arms = mean_arms(runs, members)
    units = list_units(arms, suite, groups or {}, margins or {})
    chosen = check_pairs(arms, [*(default_pairs(arms) if pairs is None else pairs), *more_pairs])
    looks = check_looks(runs, sequential, method)
    asked = Asked(arms, {arm: tuple(own.values()) for arm, own in members.items()}, level, method, looks)
    tasks, scores = build_tasks(asked, units, chosen)
    notes_of = arm_notes or {}
    return Comparison(
        title=title,
        arms=tuple(
            describe_arm(name, run, notes_of.get(name, ()), members.get(name)) for name, run in arms.items()
        ),
        suite=describe_suite(runs, suite, units),
        tasks=tasks,
        suite_scores=() if sequential else scores,
        sequential=sequential,
        controls=dict(controls or {}),
        timing=dict(timing or {}) | {"arms": {name: run_timing(run) for name, run in arms.items()}},
        packages=next(iter(runs.values())).run.packages,
        notes=(*notes, *missing_task_notes(units, suite), *package_notes(runs)),
    )
