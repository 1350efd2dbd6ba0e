"""Several suites asked for at once, run as one: each keeps its own seed and settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lora_eval.errors import TaskError
from lora_eval.fingerprint import fingerprint_data
from lora_eval.protocols import Engine, Progress, SuiteResult
from lora_eval.records import EvalSuite
from lora_eval.suites.lm_eval import Items, LmEvalSuite

if TYPE_CHECKING:
    from lora_eval.suites.bridge import Answers


class CombinedSuite:
    """The tasks of several suites under one name and fingerprint.

    Raises:
        TaskError: two suites hold the same task.
    """

    def __init__(self, parts: Sequence[LmEvalSuite]) -> None:
        self._parts = tuple(parts)
        self.name = "+".join(part.name for part in parts)
        self.limit = parts[0].limit
        self.groups = {name: leaves for part in parts for name, leaves in part.groups.items()}
        self.fingerprint = fingerprint_data([part.fingerprint for part in parts])
        self.record = _joined([part.record for part in parts], self.name)
        names = [task for part in parts for task in part.task_names]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise TaskError(f"task '{twice[0]}' is in more than one of the suites {self.name}; leave one out")

    @property
    def items(self) -> dict[str, tuple[int, ...]]:
        """What a whole run asks: the items of every leaf task, suite by suite."""
        return {name: found for part in self._parts for name, found in part.items.items()}

    @property
    def metrics(self) -> dict[str, tuple[str, ...]]:
        """The metrics of every leaf task, in its own order."""
        return {name: found for part in self._parts for name, found in part.metrics.items()}

    @property
    def plain_means(self) -> frozenset[str]:
        """The groups whose figure counts every one of their tasks alike, whatever its number of items."""
        return frozenset(name for part in self._parts for name in part.plain_means)

    def run(
        self,
        engine: Engine,
        arm: str,
        progress: Progress,
        *,
        items: Items | None = None,
        answers: Answers | None = None,
    ) -> SuiteResult:
        """Score every item of every suite on `arm`, suite by suite; options as `LmEvalSuite.run`."""
        unknown = sorted(set(items or ()) - self.items.keys())
        if unknown:
            raise TaskError(f"no task '{unknown[0]}' in the suites {self.name}")
        found = []
        for part in self._parts:
            own = None if items is None else {name: items[name] for name in part.items if name in items}
            found.append(part.run(engine, arm, progress, items=own, answers=answers))
        return SuiteResult(
            rows=[row for result in found for row in result.rows],
            results=[figure for result in found for figure in result.results],
            task_versions={name: v for result in found for name, v in result.task_versions.items()},
            dropped_items={name: n for result in found for name, n in result.dropped_items.items()},
            notes=tuple(dict.fromkeys(note for result in found for note in result.notes)),
        )


def _joined(records: Sequence[EvalSuite], name: str) -> EvalSuite:
    entries = [
        entry
        if entry.apply_chat_template is not None
        else entry.model_copy(update={"apply_chat_template": record.apply_chat_template})
        for record in records
        for entry in record.entries()
    ]
    values: dict[str, Any] = {
        "name": name,
        "version": "+".join(record.version for record in records),
        "tasks": tuple(entries),
        "seed": records[0].seed,
    }
    return EvalSuite(**values)
