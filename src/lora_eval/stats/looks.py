"""The looks of a sequential comparison: which items were there at each, and one estimate made of all.

Everything follows from the runs and the comparison's `sequential` record, so it can be made again anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from lora_eval.errors import InputError
from lora_eval.records import LoadedRun, Look, Sequential, SequentialTask
from lora_eval.stats.estimate import Estimate
from lora_eval.stats.laws import Law, ScaledLaw, StudentLaw
from lora_eval.stats.pairing import PairedRows
from lora_eval.stats.power import normal_mde
from lora_eval.stats.sequential import SequentialLaw, order_key

Item = tuple[str, int]
ORDER_SEED = "order"
"""Name, among a run's seeds, of the one that ordered its items: the run was stopped early."""


@dataclass(frozen=True, slots=True)
class Looks:
    """The looks so far at one task, and the places of its items in the random order."""

    places: Mapping[Item, int]
    task: SequentialTask

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many items of the task were there at each look so far."""
        return self.task.looks[: self.task.look]

    @property
    def shares(self) -> tuple[float, ...]:
        """The same as a share of all its items."""
        return tuple(size / self.task.items for size in self.sizes)


def in_order(items: Iterable[Item], seed: int) -> list[Item]:
    """Return items (task, number) in the random order of this seed."""
    return sorted(items, key=lambda item: order_key(seed, *item))


def check_looks(
    runs: Mapping[str, LoadedRun], sequential: Sequential | None, method: str
) -> dict[str, Looks]:
    """Return the looks at each task; none for runs that were not stopped early.

    Raises:
        InputError: runs were stopped early and nothing says how, the record is of other runs, or `method` is
            made for one look only.
    """
    stopped = [name for name, run in runs.items() if ORDER_SEED in run.run.seeds]
    if sequential is None:
        if stopped:
            raise InputError(
                f"arm {stopped[0]}: its run was stopped early by `compare --sequential`, so intervals for a "
                "fixed number of items do not hold for it; use the comparison.json that came with it"
            )
        return {}
    if method != "auto":
        raise InputError(f"--method {method} is made for one look at the items; leave out --sequential")
    return find_looks(sequential, runs)


def find_looks(sequential: Sequential, runs: Mapping[str, LoadedRun]) -> dict[str, Looks]:
    """Return the looks by name of task, of group, and of the group's tasks.

    Raises:
        InputError: a run has other items than the record says.
    """
    found: dict[str, Looks] = {}
    for task in sequential.tasks:
        leaves = set(task.leaves)
        answered = {
            name: {(row.task, row.item_id) for row in run.rows if row.task in leaves}
            for name, run in runs.items()
        }
        for name, items in answered.items():
            if len(items) != task.scored:
                raise InputError(
                    f"arm {name}: its run has {len(items)} items of task {task.task}, but {task.scored} were "
                    "scored in this sequential comparison; the runs belong to another one"
                )
        ordered = in_order(set().union(*answered.values()), sequential.seed)
        looks = Looks({item: place for place, item in enumerate(ordered)}, task)
        found |= dict.fromkeys((task.task, *task.leaves), looks)
    return found


def estimate_looks(
    paired: PairedRows, looks: Looks, estimate_of: Callable[[PairedRows], Estimate]
) -> Estimate:
    """Return the estimate over the items that are there, with interval and p-values that hold at every look.

    `estimate_of` makes the fixed-size estimate of some of the rows; it is asked for those of each look.
    `mde` is the difference that this look would have found with power 0.8.
    """
    sizes = zip(looks.shares, looks.sizes, strict=True)
    estimates = [(share, estimate_of(_until(paired, looks, size))) for share, size in sizes]
    last = estimates[-1][1]
    method = f"{last.method}; group sequential, look {looks.task.look} of {len(looks.task.looks)}"
    inner = SequentialLaw(tuple(_look(share, estimate) for share, estimate in estimates))
    p_value = inner.p_value
    if last.law is None:
        return replace(last, p_value=p_value, p_mid=None, method=method)
    low, high = inner.interval(last.level)
    law: Law = inner
    if isinstance(last.law, ScaledLaw):
        law = ScaledLaw(inner, last.law.unit, last.law.scale)
    stricter = 1.0 - float(inner.spending.nominal(1.0 - last.level)[-1])
    return replace(
        last,
        ci_low=law.interval(last.level)[0],
        ci_high=law.interval(last.level)[1],
        p_value=p_value,
        p_mid=None,
        mde=None if last.mde is None else last.mde * normal_mde(1.0, stricter) / normal_mde(1.0, last.level),
        ratio_low=None if last.ratio is None else math.exp(low),
        ratio_high=None if last.ratio is None else math.exp(high),
        method=method,
        law=law,
    )


def _until(paired: PairedRows, looks: Looks, size: int) -> PairedRows:
    """The rows that were there when `size` items of the task were."""
    there = [looks.places[(row.task, row.item_id)] < size for row in paired.first]
    first = tuple(row for row, kept in zip(paired.first, there, strict=True) if kept)
    second = tuple(row for row, kept in zip(paired.second, there, strict=True) if kept)
    return PairedRows(first, second, 0)


def _look(share: float, estimate: Estimate) -> Look:
    law = estimate.law.law if isinstance(estimate.law, ScaledLaw) else estimate.law
    student = law if isinstance(law, StudentLaw) else None
    return Look(
        share=share,
        n=estimate.n,
        higher=estimate.higher,
        lower=estimate.lower,
        ties=estimate.ties,
        effective_n=estimate.effective_n,
        center=student.center if student else None,
        variance_parts=student.parts if student else (),
        bounded=law is not None,
        p_value=estimate.p_value,
    )
