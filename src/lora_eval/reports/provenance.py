"""What was run, on what, how fast, and from which weights and data: tables for every report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lora_eval.records import Comparison, LoadedRun, RowCounts, TrainingLog
from lora_eval.reports.lines import Chart, loss_chart
from lora_eval.reports.numbers import DASH, count_text, plain, seconds_text
from lora_eval.reports.origins import Origin


@dataclass(frozen=True, slots=True)
class Cost:
    """What the answers of one run took, in words."""

    name: str
    seconds: str
    asked: str
    computed: str
    rate: str
    saved: str
    stored: str


@dataclass(frozen=True, slots=True)
class Training:
    """One training: its facts, what was found in its data, and its curve (None: not enough points)."""

    name: str
    facts: tuple[tuple[str, str], ...]
    data: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]
    chart: Chart | None


def looks(comparison: Comparison) -> list[tuple[str, str, str, str]]:
    """Return how far each task of a sequential comparison went: task, items, look, why it stopped."""
    if comparison.sequential is None:
        return []
    reasons = {
        "gate": "the gate's rules on it were decided",
        "verdict": "its verdicts were decided",
        "end": "all items were scored",
    }
    return [
        (
            task.task,
            f"{count_text(task.scored)} of {count_text(task.items)}",
            f"{task.look} of {len(task.looks)}",
            reasons[task.stopped],
        )
        for task in comparison.sequential.tasks
    ]


def costs(comparison: Comparison) -> list[Cost]:
    """Return time and tokens of every run, in the order of the record."""
    found = []
    for name, spent in comparison.timing.get("arms", {}).items():
        ratio, seconds, computed = (
            spent.get("ratio"),
            spent.get("wall_seconds"),
            spent.get("forwarded_tokens"),
        )
        found.append(
            Cost(
                name,
                seconds_text(seconds),
                count_text(spent.get("requested_tokens", spent.get("prompt_tokens"))),
                count_text(computed),
                count_text(round(computed / seconds)) if computed and seconds else DASH,
                DASH if ratio is None else f"{ratio:.2f}",
                count_text(spent.get("stored_requests")),
            )
        )
    return found


def settings(comparison: Comparison, runs: Mapping[str, LoadedRun]) -> list[tuple[str, str]]:
    """Return what else a reader needs to run it again: suite, seeds, engine, machine, versions."""
    return [(name, text) for name, text in _settings(comparison, runs) if text]


def trainings(origins: Mapping[str, Origin]) -> list[Training]:
    """Return the training of every arm that has a record of it; the same record stands once."""
    found = list[tuple[str, TrainingLog]]()
    for name, origin in origins.items():
        log = origin.training
        if log is not None and all(log != known for _, known in found):
            found.append((name, log))
    return [_training(name, log) for name, log in found]


def steps(origins: Mapping[str, Origin]) -> list[tuple[str, str]]:
    """Return how each arm came about: `lora-eval train 0.1.0 (65 s), lora-eval export merge 0.1.0`."""
    return [
        (
            name,
            ", then ".join(
                f"{step.tool} {step.version}"
                + (f" ({seconds_text(step.wall_seconds)})" if step.wall_seconds is not None else "")
                for step in origin.lineage.steps
            ),
        )
        for name, origin in origins.items()
        if origin.lineage is not None and origin.lineage.steps
    ]


def _settings(comparison: Comparison, runs: Mapping[str, LoadedRun]) -> Iterator[tuple[str, str]]:
    suite = comparison.suite
    version = f" {suite['version']}" if suite.get("version") else ""
    yield "suite", f"{suite.get('name', '')}{version}"
    yield "suite fingerprint", str(suite.get("fingerprint") or "")
    yield "seeds", _pairs(suite.get("seeds"))
    yield "limit", "" if suite.get("limit") is None else f"the first {suite['limit']} items of every task"
    for title, values in (
        ("engine", {name: f"{run.run.engine}, {run.run.dtype}" for name, run in runs.items()}),
        ("machine", {name: _pairs(run.run.hardware) for name, run in runs.items()}),
        ("git commit", {name: run.run.git_commit or "" for name, run in runs.items()}),
        ("task versions", {name: _pairs(run.run.task_versions) for name, run in runs.items()}),
    ):
        yield title, _one_or_each(values)
    for name, value in comparison.timing.items():
        if name != "arms":
            label = name.removesuffix("_seconds").replace("_", " ")
            if name.endswith("_seconds"):
                yield f"time, {'all' if label == 'wall' else label}", seconds_text(value)
            elif name.endswith("_gib"):
                yield label.removesuffix(" gib"), f"{value:.1f} GiB"
            else:
                yield label, _text(value)
    yield "packages", _pairs(comparison.packages)


def _training(name: str, log: TrainingLog) -> Training:
    facts = [
        ("recipe", log.recipe),
        ("base", log.base),
        ("steps", f"{count_text(log.steps)} ({log.epochs:.2f} epochs)"),
        ("trained tokens", count_text(log.trained_tokens)),
        ("trainable parameters", count_text(log.trainable_parameters)),
        ("loss", f"{_loss(log.loss_start)} at first, {_loss(log.loss_end)} at the end"),
        ("time", seconds_text(log.wall_seconds)),
        ("peak memory", DASH if log.peak_memory_gib is None else f"{log.peak_memory_gib:.1f} GiB"),
        ("processes", count_text(log.processes)),
        ("saved adapter against the live one", _reload(log)),
    ]
    counted = [("training", log.rows), *([("evaluation", log.eval_rows)] if log.eval_rows else [])]
    data = [pair for kind, rows in counted for pair in _rows(kind, rows)]
    problems = [text for kind, rows in counted for text in _problems(kind, rows)]
    return Training(name, tuple(facts), tuple(data), (*problems, *log.notes), loss_chart(log))


def _rows(name: str, rows: RowCounts) -> Iterator[tuple[str, str]]:
    yield f"{name} rows", f"{count_text(rows.used)} used of {count_text(rows.read)} read"
    yield f"{name} tokens", f"{count_text(rows.tokens)}, {count_text(rows.trained_tokens)} of them trained on"
    yield f"{name} answers", count_text(rows.turns)


def _problems(name: str, rows: RowCounts) -> list[str]:
    told = (
        (rows.without_assistant, "have no answer of an assistant and were left out"),
        (rows.left_out, "were left out by the recipe's max_rows"),
        (rows.untrained, "have no trained token within max_length and were left out"),
        (rows.cut, "are longer than max_length and were cut"),
        (rows.cut_in_answer, "lost the end of an answer by that"),
    )
    found = [f"{count_text(count)} {name} rows {text}." for count, text in told if count]
    if rows.turns_without_end:
        found.append(
            f"{count_text(rows.turns_without_end)} trained answers in {name} rows do not end in a stop token."
        )
    return found


def _reload(log: TrainingLog) -> str:
    check = log.reload
    if check.equal:
        return f"equal in every logit of {count_text(check.tokens)} tokens"
    return f"differs by up to {check.max_difference:.2g} over {count_text(check.tokens)} tokens"


def _loss(value: float | None) -> str:
    return DASH if value is None else plain(value)


def _one_or_each(values: Mapping[str, str]) -> str:
    """One text where all runs agree, else each with its name."""
    if len(set(values.values())) <= 1:
        return next(iter(values.values()), "")
    return "; ".join(f"{name}: {text or DASH}" for name, text in values.items())


def _pairs(values: Mapping[str, Any] | None) -> str:
    found = []
    for name, value in (values or {}).items():
        unit = " GiB" if name.endswith("_gib") else ""
        found.append(f"{name.removesuffix('_gib')} {_text(value)}{unit}")
    return ", ".join(found)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
