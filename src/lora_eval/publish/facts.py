"""What a card says beside its table, in words, each from the records: data, limits, how to load it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from lora_eval.publish.licences import notices
from lora_eval.publish.records import Records
from lora_eval.records import Arm, Comparison, Pair, Publication, RowCounts, Run, TaskComparison
from lora_eval.reports.numbers import count_text, is_share, size_text
from lora_eval.resources import resource_folder
from lora_eval.schema import load_yaml

__all__ = [
    "Row",
    "data_facts",
    "limits",
    "loaders",
    "notices",
    "opening",
    "own_run",
    "own_template",
    "served_rank",
    "unjudged_losses",
]

_DTYPES = ("float32", "bfloat16", "float16")
Row = tuple[TaskComparison, Pair]


def unjudged_losses(comparison: Comparison, base: str, arm: str) -> list[Row]:
    """Return the lines outside the verdicts whose whole interval is on the losing side: other metrics, and
    the single tasks of a group.
    """
    return [
        (task, pair)
        for task in comparison.tasks
        for pair in task.pairs
        if not task.primary and (pair.a, pair.b) == (base, arm) and _loses(task, pair)
    ]


def _loses(task: TaskComparison, pair: Pair) -> bool:
    if pair.ci_low is None or pair.ci_high is None:
        return False
    return pair.ci_high < 0 if task.higher_is_better else pair.ci_low > 0


def own_template(records: Records) -> bool:
    """Return whether the adapter was trained with another chat template than its base's own."""
    return records.recipe is not None and records.recipe.chat_template is not None


def own_run(arm: Arm, records: Records, publication: Publication) -> str | None:
    """Return which of the arm's training runs these weights are; None where it has one only."""
    found = records.verification.reference.fingerprint if records.verification else None
    wanted = (publication.fingerprint, found if publication.verified_as else None)
    return next((run.name for run in arm.runs if run.fingerprint in wanted), None)


def data_facts(records: Records, publication: Publication) -> list[str]:
    """Return what is known of the training data: files and their form, counts, hash, licence."""
    training, recipe = records.training, records.recipe
    if training is None and recipe is None:
        return []
    steps = records.lineage.steps if records.lineage else ()
    digest = next((step.inputs["data"] for step in steps if "data" in step.inputs), None)
    return [*_files(records), *_counts(records), *([f"fingerprint: `{digest}`"] if digest else []),
            f"licence: {publication.data_license or 'not stated by the publisher'}"]  # fmt: skip


def _files(records: Records) -> Iterator[str]:
    data = records.recipe.data if records.recipe else None
    for name, files in (("training", data.files), ("evaluation", data.eval_files)) if data else ():
        if files:
            listed = ", ".join(f"`{file}`" for file in files)
            yield f"{name} files: {listed} (conversations as JSON lines)"


def _counts(records: Records) -> Iterator[str]:
    training = records.training
    for name, rows in (("training", training.rows), ("evaluation", training.eval_rows)) if training else ():
        if rows is not None:
            yield f"{name} rows: {_rows_text(rows)}"


def _rows_text(rows: RowCounts) -> str:
    return (
        f"{count_text(rows.used)} used of {count_text(rows.read)} read, {count_text(rows.tokens)} tokens, "
        f"{count_text(rows.trained_tokens)} of them trained on, {count_text(rows.turns)} answers"
    )


def limits(records: Records, rows: Sequence[Row]) -> list[str]:
    """Return what the figures do not say, each limit with its number where it has one."""
    comparison = records.comparison
    return [
        "The figures say what these tasks measure, on these items, and nothing about others.",
        *_resolution(rows),
        *_missing(comparison, rows),
        *_training_runs(comparison, rows),
        "Whether the base met these items in its own training is not known to us.",
        *(f"Noted while measuring: {note}" for note in comparison.notes),
    ]


def _resolution(rows: Sequence[Row]) -> Iterator[str]:
    """The smallest loss that would have been seen, of the task that shows least."""
    shares = [(task, pair) for task, pair in rows if is_share(task) and pair.mde and pair.verdict != "better"]
    if shares:
        task, pair = max(shares, key=lambda row: row[1].mde or 0.0)
        size = size_text(task, pair, pair.mde)
        yield (
            f"A true loss of {size} points on {task.task} is found with probability 0.8 at this number of "
            "items, a smaller one less often; other tasks find smaller ones."
        )


def _missing(comparison: Comparison, rows: Sequence[Row]) -> Iterator[str]:
    limit = comparison.suite.get("limit")
    if limit is not None:
        yield f"Only the first {limit} items of every task were asked."
    missing = [(task.task, pair.missing) for task, pair in rows if pair.missing]
    if missing:
        told = ", ".join(f"{count_text(count)} of {name}" for name, count in missing)
        yield f"Items without a value in both arms, left out of the table: {told}."
    if comparison.sequential is not None:
        yield f"Tasks were stopped once they were decided ({comparison.sequential.method}): fewer items."


def _training_runs(comparison: Comparison, rows: Sequence[Row]) -> Iterator[str]:
    arm = next((arm for arm in comparison.arms if rows and arm.name == rows[0][1].b), None)
    if arm is not None and not arm.runs:
        yield "One training was measured; intervals say nothing of how another seed would have come out."


def opening(header: Run | None, records: Records) -> tuple[str, tuple[str, ...]]:
    """Return how the base was opened when the adapter was measured: the argument of `from_pretrained`, and
    those of `BitsAndBytesConfig`; as in training where there is no header of the run. Empty: as by default.
    """
    trained = records.lineage.quantization if records.lineage else None
    dtype = f'dtype="{header.dtype}"' if header and header.dtype in _DTYPES else ""
    return dtype, _arguments(header.quantization if header else trained)


def served_rank(rank: int) -> int:
    """Return the least of vLLM's sizes that takes the rank (vllm/config/lora.py, 0.32)."""
    return next(size for size in (1, 8, 16, 32, 64, 128, 256, 320, 512) if size >= min(rank, 512))


def _arguments(values: Mapping[str, Any] | None) -> tuple[str, ...]:
    return tuple(f"{key}={value!r}" for key, value in (values or {}).items())


def loaders(kind: str) -> dict[str, str]:
    """Return with which versions each command of the card is run by our tests, where it is."""
    return {name: kinds[kind] for name, kinds in _loaders().items() if kind in kinds}


@cache
def _loaders() -> dict[str, dict[str, str]]:
    return load_yaml(resource_folder("templates") / "cards" / "loaders.yaml")
