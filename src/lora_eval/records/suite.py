"""EvalSuite: which tasks are run, how, and on how many items."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from lora_eval.records.base import Record


class TaskEntry(Record):
    """One lm-eval task of a suite: its own name, with what the suite fixes for it.

    None leaves the task's own value. `limit` takes that many items evenly spaced over each leaf task (of a
    group: over each of its tasks), so that a cut stays stratified whatever order the data set is in; the
    command line's `--limit` is lm-eval's own, the first N. `metric` is `name,filter` of the metric that the
    verdict rests on; None takes the task's first one. `role` says what the task is for: the target of the
    fine-tuning or a guard for what the base could do. `cluster` names the document field by which items
    depend on each other.
    """

    task: str
    num_fewshot: int | None = Field(default=None, ge=0)
    limit: int | None = Field(default=None, ge=1)
    metric: str | None = None
    role: Literal["target", "guard", "other"] = "other"
    margin: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    cluster: str | None = None
    apply_chat_template: bool | None = None


class EvalSuite(Record):
    """A fixed set of tasks. `include_path` is the folder with the suite's own task YAML files (relative
    to the suite's file; None: only lm-eval's own tasks). `minutes` and `items` are documentation.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: str
    version: str
    summary: str = ""
    tasks: tuple[TaskEntry | str, ...]
    include_path: str | None = None
    apply_chat_template: bool = False
    seed: int = 1234
    detectable_difference: str | None = None
    generation: dict[str, Any] = Field(default_factory=dict)
    items: int | None = None
    data_licence: str | None = None

    def entries(self) -> tuple[TaskEntry, ...]:
        """Every task as a TaskEntry, in order."""
        return tuple(TaskEntry(task=t) if isinstance(t, str) else t for t in self.tasks)
