"""Arms that share a base answer a suite in looks: each task's items in random order, all arms the same ones,
until its verdicts are decided.

Who decides is not known here: it is asked after every look, with what the arms have answered.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from lora_eval.engines.parallel import ALONE, Processes
from lora_eval.evaluate.selection import AnySuite, leaves_of
from lora_eval.protocols import Engine, Progress, SuiteResult
from lora_eval.records import LoadedRun, Run, Sequential, SequentialTask
from lora_eval.runner import Spent
from lora_eval.stats.looks import in_order
from lora_eval.stats.sequential import METHOD, SOURCE, look_sizes
from lora_eval.suites.bridge import Answers
from lora_eval.suites.selected import SelectedSuite

Reason = Literal["gate", "verdict", "end"]
Decide = Callable[[Mapping[str, LoadedRun], Sequential], Mapping[str, Reason]]
"""Called after each look with the runs so far; returns the entries that are decided, and by what."""


@dataclass(slots=True)
class _Task:
    """One entry of the suite: its items in random order, and how far it is."""

    leaves: tuple[str, ...]
    order: list[tuple[str, int]]
    looks: tuple[int, ...]
    look: int = 0
    stopped: Reason | None = None

    @property
    def scored(self) -> int:
        return self.looks[self.look - 1] if self.look else 0


@dataclass(slots=True)
class Course:
    """A sequential comparison on its way. `decide` says after each look which tasks are decided."""

    suite: AnySuite
    decide: Decide
    arms: tuple[str, ...] = ()
    spent: dict[str, Spent] = field(default_factory=dict)
    _tasks: dict[str, _Task] = field(default_factory=dict)
    _answers: dict[str, Answers] = field(default_factory=dict)
    _record: Sequential | None = None

    def __post_init__(self) -> None:
        items, whole = self.suite.items, self.suite.plain_means
        for name, leaves in leaves_of(self.suite).items():
            order = in_order(((leaf, item) for leaf in leaves for item in items[leaf]), self.seed)
            # A mean over tasks has no estimate while some of its tasks have few items: it is looked at once.
            looks = (len(order),) if name in whole else look_sizes(len(order))
            self._tasks[name] = _Task(tuple(leaves), order, looks)

    @property
    def seed(self) -> int:
        """The seed of the items' order: the suite's."""
        return self.suite.record.seed

    @property
    def record(self) -> Sequential | None:
        """How far each task went (None before the first look)."""
        return self._record

    def selected(self) -> SelectedSuite:
        """Return the items that were scored, as a suite; the arms have answered it already."""
        chosen: dict[str, list[int]] = {}
        for task in self._tasks.values():
            for leaf, item in task.order[: task.scored]:
                chosen.setdefault(leaf, []).append(item)
        return SelectedSuite(self.suite, chosen, self._answers)

    def run(
        self,
        engine: Engine,
        headers: Mapping[str, Run],
        progress: Progress,
        processes: Processes = ALONE,
    ) -> None:
        """Score look after look on the arms of `headers` until every task is decided or at its end.

        All arms answer a look before any task is judged. Of several processes the first decides.
        """
        self.arms = tuple(headers)
        self._answers = {arm: Answers() for arm in headers}
        self.spent = {arm: Spent() for arm in headers}
        while open_tasks := [task for task in self._tasks.values() if task.stopped is None]:
            for task in open_tasks:
                task.look += 1
            number = max(task.look for task in self._tasks.values())
            suite = self.selected()
            results = {arm: self._answer(suite, engine, arm, progress, number) for arm in headers}
            record = self._describe(next(iter(results.values())))
            runs = {arm: _loaded(headers[arm], result) for arm, result in results.items()}
            self._stop(processes.first(f"look {number}", partial(self.decide, runs, record)))
            self._record = self._describe(next(iter(results.values())))

    def _answer(
        self, suite: SelectedSuite, engine: Engine, arm: str, progress: Progress, number: int
    ) -> SuiteResult:
        started, before = time.perf_counter(), Counter(getattr(engine, "work", ()))

        def labelled(what: str, done: int, total: int) -> None:
            progress(f"look {number}, {what}", done, total)

        result = suite.run(engine, arm, labelled)
        after = Counter(getattr(engine, "work", ()))
        after.subtract(before)
        self.spent[arm].work.update(after)
        self.spent[arm].seconds += time.perf_counter() - started
        return result

    def _stop(self, decided: Mapping[str, Reason]) -> None:
        for name, task in self._tasks.items():
            if task.stopped is None and name in decided:
                task.stopped = decided[name]
            elif task.stopped is None and task.look == len(task.looks):
                task.stopped = "end"

    def _describe(self, result: SuiteResult) -> Sequential:
        tokens: dict[str, dict[int, int]] = {}
        for row in result.rows:
            tokens.setdefault(row.task, {})[row.item_id] = row.prompt_tokens or 0
        return Sequential(
            method=METHOD,
            source=SOURCE,
            seed=self.seed,
            arms=self.arms,
            tasks=tuple(_describe(name, task, tokens) for name, task in self._tasks.items()),
        )


def _describe(name: str, task: _Task, tokens: Mapping[str, Mapping[int, int]]) -> SequentialTask:
    read = sum(sum(tokens.get(leaf, {}).values()) for leaf in task.leaves)
    return SequentialTask(
        task=name,
        leaves=task.leaves,
        items=len(task.order),
        scored=task.scored,
        look=task.look,
        looks=task.looks,
        stopped=task.stopped or "end",
        tokens=read,
        tokens_asked=round(read * len(task.order) / task.scored),
    )


def _loaded(header: Run, result: SuiteResult) -> LoadedRun:
    return LoadedRun(header.model_copy(update={"results": tuple(result.results)}), result.rows)


def stopped_notes(record: Sequential) -> Sequence[str]:
    """Return what a reader must know: figures of tasks that stopped early are over a part of the items."""
    early = [task for task in record.tasks if task.scored < task.items]
    if not early:
        return ("sequential: no task was decided before all of its items were scored",)
    scored, items, tokens, asked = (
        sum(getattr(task, name) or 0 for task in record.tasks)
        for name in ("scored", "items", "tokens", "tokens_asked")
    )
    told = "; ".join(
        f"{task.task} after {task.scored:,} of {task.items:,} items (look {task.look} of {len(task.looks)})"
        for task in early
    )
    return (
        f"sequential: {scored:,} of {items:,} items were scored on every arm, with {tokens:,} of about "
        f"{asked:,} prompt tokens ({1 - tokens / max(asked, 1):.0%} saved)",
        f"sequential: stopped early: {told}. Means and all other figures of these tasks are over the items "
        "that were scored; intervals and p-values hold at every look",
    )
