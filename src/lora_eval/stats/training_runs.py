"""Several training runs (seeds) of one arm: the arm whose value of an item is the mean over its runs.

What differs from run to run is a second source of variation beside the items. `average_runs` makes the arm;
how its variance is taken is in `laws.StudentLaw`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lora_eval.errors import InputError
from lora_eval.records import LoadedRun, Run, SampleRow, TaskResult, Work
from lora_eval.stats.pairing import LIKELIHOOD_METRICS

Key = tuple[str, str, int, str, int]


def average_runs(arm: str, runs: Mapping[str, LoadedRun]) -> LoadedRun:
    """Return the arm made of its training runs: items that all of them answered, each value a mean.

    The mean of log-likelihoods makes a perplexity the geometric mean of the runs'. Times and token counts are
    sums. The arm has no weights of its own, so no fingerprint.

    Raises:
        InputError: fewer than two runs, or an item was asked with two different prompts.
    """
    if len(runs) < 2:
        raise InputError(f"arm {arm}: a mean over training runs needs two of them, got {', '.join(runs)}")
    indexed = {name: {_key(row): row for row in run.rows} for name, run in runs.items()}
    first, *others = indexed.values()
    rows = [
        _mean_row(arm, {name: own[key] for name, own in indexed.items()})
        for key in first
        if all(key in own for own in others)
    ]
    return LoadedRun(_header(arm, {name: run.run for name, run in runs.items()}), rows)


def _key(row: SampleRow) -> Key:
    return row.task, row.filter, row.item_id, row.doc_hash, row.repeat


def _mean_row(arm: str, rows: Mapping[str, SampleRow]) -> SampleRow:
    own = list(rows.values())
    first = own[0]
    for name, row in rows.items():
        if row.prompt_sha256 != first.prompt_sha256:
            raise InputError(
                f"arm {arm}, task {row.task}, item {row.item_id}: the prompt of {name} differs from that of "
                f"{next(iter(rows))}; run all with the same chat template, shots and seed"
            )
    outputs = [row.output for row in own]
    same = len(set(outputs)) == 1
    reasons = dict.fromkeys(f"{name}: {row.reason}" for name, row in rows.items() if row.reason)
    return replace(
        first,
        output=outputs[0] if same else "\n".join(f"[{name}] {row.output}" for name, row in rows.items()),
        metrics={metric: _mean([row.metrics.get(metric) for row in own]) for metric in first.metrics},
        log_likelihoods=_mean_vector([row.log_likelihoods for row in own]),
        reason="; ".join(reasons) or None,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where a run has no value."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) else None


def _mean_vector(vectors: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    if len({len(vector) for vector in vectors}) != 1:
        return ()
    return tuple(math.fsum(values) / len(values) for values in zip(*vectors, strict=True))


def _header(arm: str, runs: Mapping[str, Run]) -> Run:
    own = list(runs.values())
    first = own[0]
    seconds = [run.wall_seconds for run in own if run.wall_seconds is not None]
    tokens = [run.prompt_tokens for run in own if run.prompt_tokens is not None]
    partial = any(run.status != "complete" for run in own)
    return first.model_copy(
        update={
            "arm": arm,
            "variant": first.variant.model_copy(
                update={"path": ", ".join(run.variant.path for run in own), "fingerprint": None}
            ),
            "results": tuple(_mean_result(result, own) for result in first.results),
            "wall_seconds": math.fsum(seconds) if seconds else None,
            "prompt_tokens": sum(tokens) if tokens else None,
            "work": _total_work([run.work for run in own if run.work]),
            "notes": (
                f"mean of {len(own)} training runs",
                *dict.fromkeys(n for run in own for n in run.notes),
            ),
            "status": "partial" if partial else "complete",
        }
    )


def _mean_result(result: TaskResult, runs: Sequence[Run]) -> TaskResult:
    wanted = (result.task, result.metric, result.filter)
    values = [
        next((r.value for r in run.results if (r.task, r.metric, r.filter) == wanted), None) for run in runs
    ]
    if LIKELIHOOD_METRICS.get(result.metric) != "perplexity":
        return result.model_copy(update={"value": _mean(values)})
    logs = _mean([None if value is None or value <= 0 else math.log(value) for value in values])
    return result.model_copy(update={"value": None if logs is None else math.exp(logs)})


def _total_work(works: Sequence[Work]) -> Work | None:
    if not works:
        return None
    names = [name for name in Work.model_fields if name != "ratio"]
    total = Work(**{name: sum(getattr(work, name) for work in works) for name in names})
    if not total.forwarded_tokens:
        return total
    return total.model_copy(update={"ratio": total.requested_tokens / total.forwarded_tokens})
