"""lm-eval's logged samples as our rows, one for each item and filter: numbers, or None with a reason."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

from lora_eval.fingerprint import sha256_text
from lora_eval.records import SampleRow, TaskResult


def rows_of(
    task: Any,
    samples: Sequence[Mapping[str, Any]],
    facts: Mapping[Any, Any],
    places: Mapping[int, int],
    cluster: str | None,
) -> Iterator[SampleRow]:
    """Return the rows of one task, in lm-eval's order (by filter, then by item).

    `facts` counts items as a whole run meets them, lm-eval's samples as they stand in the data set; `places`
    leads from the second to the first.
    """
    for sample in samples:
        fact = facts.get((task.task_name, places[int(sample["doc_id"])]))
        metrics, weights, reason = _values(task, sample)
        yield SampleRow(
            task=task.task_name,
            item_id=int(sample["doc_id"]),
            doc_hash=sample["doc_hash"],
            filter=sample["filter"],
            repeat=0,
            prompt_sha256=sha256_text(json.dumps(sample["arguments"], ensure_ascii=False, default=str)),
            prompt=str(sample["arguments"][0][0]) if task.OUTPUT_TYPE != "loglikelihood_rolling" else "",
            target=_target(task, sample),
            output=_output(task, sample),
            metrics=metrics,
            log_likelihoods=_log_likelihoods(sample["filtered_resps"]),
            prompt_tokens=fact.prompt_tokens if fact else None,
            finish_reason=fact.finish_reason if fact else None,
            cluster=str(sample["doc"][cluster]) if cluster else None,
            reason=reason,
            weights=weights,
            choices=_offered(task, sample),
        )


def results_of(found: Mapping[str, Any]) -> Iterator[TaskResult]:
    """Return lm-eval's own figures of tasks and groups."""
    for task, figures in found["results"].items():
        directions = found["higher_is_better"].get(task, {})
        for name, value in figures.items():
            metric, comma, filter_name = name.rpartition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            number = _number(value)
            yield TaskResult(
                task=task,
                metric=metric,
                filter=filter_name,
                higher_is_better=directions.get(metric) is not False,
                value=number,
                n=int(figures.get("sample_len", 0)),
            )


def _values(
    task: Any, sample: Mapping[str, Any]
) -> tuple[dict[str, float | None], dict[str, float], str | None]:
    metrics: dict[str, float | None] = {}
    weights: dict[str, float] = {}
    reasons = []
    for name in sample["metrics"]:
        value = sample[name]
        if task.OUTPUT_TYPE == "loglikelihood_rolling" and isinstance(value, tuple) and len(value) == 2:
            metrics[name], weights[name] = _number(value[0]), float(value[1])
        else:
            metrics[name] = _number(value)
        if metrics[name] is None:
            kind = type(value).__name__
            reasons.append(f"{name}: lm-eval gives a {kind} for each item and a figure only for the task")
    return metrics, weights, "; ".join(reasons) or None


def _number(value: Any) -> float | None:
    if not isinstance(value, Real):
        return None
    return float(value) if math.isfinite(value) else None


def _log_likelihoods(responses: Sequence[Any]) -> tuple[float, ...]:
    values = [answer[0] if isinstance(answer, (tuple, list)) else answer for answer in responses]
    return tuple(float(value) for value in values) if all(isinstance(v, Real) for v in values) else ()


def _target(task: Any, sample: Mapping[str, Any]) -> str:
    target = sample["target"]
    if task.OUTPUT_TYPE == "multiple_choice" and isinstance(target, int) and not isinstance(target, bool):
        choices = _choices(sample)
        return choices[target] if 0 <= target < len(choices) else str(target)
    return str(target)


def _output(task: Any, sample: Mapping[str, Any]) -> str:
    if task.OUTPUT_TYPE == "generate_until":
        return str(sample["resps"][0][0])
    values = _log_likelihoods(sample["filtered_resps"])
    if task.OUTPUT_TYPE == "multiple_choice" and values:
        choices = _choices(sample)[: len(values)]
        return choices[max(range(len(choices)), key=values.__getitem__)]
    return ""


def _offered(task: Any, sample: Mapping[str, Any]) -> tuple[str, ...]:
    """The choices that have a log-likelihood; some tasks score each once more without its context."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return ()
    return tuple(_choices(sample)[: len(_log_likelihoods(sample["filtered_resps"]))])


def _choices(sample: Mapping[str, Any]) -> list[str]:
    return [str(arguments[1]).strip() for arguments in sample["arguments"]]
