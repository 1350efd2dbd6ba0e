"""TrainingLog: what a training run read, did and cost; `training_log.json` beside the adapter."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lora_eval.records.base import Record


class RowCounts(Record):
    """What became of the rows of the training files; counted before the first step.

    `read` = `without_assistant` + `untrained` + `used` (+ rows left out by `max_rows`). `untrained` rows have
    no trained token within `max_length` and are left out; `cut` rows are longer than it, `cut_in_answer` of
    them lost the end of an assistant turn. `tokens` and `trained_tokens` are those of the used rows, once.
    `turns` are trained assistant turns, `turns_without_end` of them do not end in a stop token though
    they were not cut.
    """

    read: int
    without_assistant: int = 0
    left_out: int = 0
    untrained: int = 0
    cut: int = 0
    cut_in_answer: int = 0
    used: int
    tokens: int
    trained_tokens: int
    turns: int = 0
    turns_without_end: int = 0


class LossPoint(Record):
    """A point of the loss curve: mean training loss since the point before, or a loss on evaluation rows."""

    step: int
    loss: float | None = None
    eval_loss: float | None = None


class ReloadCheck(Record):
    """The saved adapter on a fresh base against the live one: logits of `tokens` positions, bit by bit.

    `effect` is the largest difference of a logit between the adapter and the base alone.
    """

    tokens: int
    equal: bool
    max_difference: float
    effect: float


class TrainingLog(Record):
    """One finished training run. Losses are nats per trained token; `loss_start` and `loss_end` are the first
    and last point of the curve (None where nothing was logged). `wall_seconds` is the training loop of the
    process that finished it; `peak_memory_gib` that of its first process (of the GPU where there is one).
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    recipe: str
    base: str
    rows: RowCounts
    eval_rows: RowCounts | None = None
    steps: int
    epochs: float
    trained_tokens: int
    trainable_parameters: int
    processes: int = 1
    loss_start: float | None
    loss_end: float | None
    curve: tuple[LossPoint, ...] = ()
    wall_seconds: float
    peak_memory_gib: float | None = None
    resumed_from_step: int | None = None
    reload: ReloadCheck
    notes: tuple[str, ...] = ()
