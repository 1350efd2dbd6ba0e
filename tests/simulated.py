"""Runs of four arms made by a seeded simulation: base, adapter, merged, GPTQ on eight tasks.

The adapter learns the target, loses some of two guards and keeps the others; merged answers as the adapter;
GPTQ changes a few items at random.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence

from lora_eval.records import EvalSuite, LoadedRun, Run, SampleRow, TaskEntry, TaskResult, Variant

KINDS = {"base": "base", "adapter": "adapter", "merged": "merged", "gptq": "gptq"}
# task: (metric, role, margin, share right under base, share right under the adapter, share GPTQ changes)
TASKS = {
    "tickets": ("exact_match", "target", None, 0.0, 0.66, 0.06),
    "terms": ("acc", "target", None, 0.48, 0.81, 0.03),
    "facts": ("acc", "guard", 0.05, 0.975, 0.97, 0.01),
    "reading": ("exact_match", "guard", 0.05, 0.86, 0.73, 0.04),
    "ordering": ("exact_match", "guard", 0.05, 0.79, 0.78, 0.05),
    "format": ("exact_match", "guard", 0.05, 0.91, 0.90, 0.02),
    "summaries": ("rouge1", "guard", 0.03, None, None, None),
    "story": ("word_perplexity", "guard", None, None, None, None),
}


def make_suite() -> EvalSuite:
    """The suite of the simulated runs."""
    entries = tuple(
        TaskEntry(task=name, metric=f"{values[0]},none", role=values[1], margin=values[2])
        for name, values in TASKS.items()
    )
    return EvalSuite(name="simulated", version="1", tasks=entries)


def make_runs(n: int = 200, seed: int = 7, arms: Sequence[str] = tuple(KINDS)) -> dict[str, LoadedRun]:
    """Runs of the arms over `n` items of each task."""
    rows: dict[str, list[SampleRow]] = {arm: [] for arm in KINDS}
    for task in TASKS:
        generator = random.Random(f"{seed}/{task}")
        for item in range(n):
            for arm, row in zip(KINDS, _item(task, item, generator), strict=True):
                rows[arm].append(row)
    return {arm: make_run(arm, rows[arm]) for arm in arms}


def make_run(arm: str, rows: Sequence[SampleRow], **changes: object) -> LoadedRun:
    """A run of these rows, with the figures that lm-eval would give."""
    header = {
        "arm": arm,
        "variant": Variant(
            kind=KINDS.get(arm, "adapter"),
            path=f"models/{arm}",
            fingerprint=f"sha256:{hashlib.sha256(arm.encode()).hexdigest()}",
        ),
        "suite": "simulated",
        "suite_fingerprint": "sha256:5u17e",
        "engine": "transformers",
        "dtype": "float32",
        "seeds": {"task": 1234},
        "results": figures(rows),
        "packages": {"lm_eval": "0.4.13", "transformers": "5.23.0"},
        "prompt_tokens": 61_234,
        "wall_seconds": 41.3,
    }
    return LoadedRun(Run(**(header | changes)), list(rows))


def figures(rows: Sequence[SampleRow]) -> tuple[TaskResult, ...]:
    """One figure for each task, metric and filter, computed as lm-eval does."""
    found: dict[tuple[str, str, str], list[SampleRow]] = {}
    for row in rows:
        for metric in row.metrics:
            found.setdefault((row.task, metric, row.filter), []).append(row)
    return tuple(
        TaskResult(
            task=task,
            metric=metric,
            filter=name,
            higher_is_better="perplexity" not in metric,
            value=_figure(metric, own),
            n=len(own),
        )
        for (task, metric, name), own in found.items()
    )


def make_row(
    task: str, item: int, metrics: Mapping[str, float | None], *, prompt: str = "", **values: object
) -> SampleRow:
    """A row of an item; the same task, item and prompt give the same hashes."""
    prompt = prompt or f"Question {item} of {task}?"
    fields = {
        "doc_hash": hashlib.sha256(f"{task}/{item}".encode()).hexdigest(),
        "filter": "none",
        "repeat": 0,
        "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest(),
        "target": "yes",
        "output": "no",
    }
    return SampleRow(task=task, item_id=item, prompt=prompt, metrics=dict(metrics), **(fields | values))


def _figure(metric: str, rows: Sequence[SampleRow]) -> float | None:
    values = [row.metrics[metric] for row in rows if row.metrics[metric] is not None]
    if not values:
        return None
    if "perplexity" in metric:
        return math.exp(-sum(values) / sum(row.weights.get(metric, 1.0) for row in rows))
    return sum(values) / len(values)


def _item(task: str, item: int, generator: random.Random) -> list[SampleRow]:
    metric, _, _, base, tuned, changed = TASKS[task]
    if metric == "word_perplexity":
        return _story(task, item, generator)
    if metric == "rouge1":
        first = generator.betavariate(6, 4)
        values = [first] + [min(1.0, max(0.0, first + generator.gauss(-0.004, 0.08)))] * 2
        values.append(min(1.0, max(0.0, values[1] + generator.gauss(-0.01, 0.03))))
        return [make_row(task, item, {metric: value}, output=f"summary {value:.3f}") for value in values]
    easy = generator.random()  # one difficulty for both arms: their answers depend on each other
    values = [float(easy < base), float((easy if generator.random() < 0.8 else generator.random()) < tuned)]
    values.append(values[1])
    values.append(1.0 - values[1] if generator.random() < changed else values[1])
    prompt = f"System: answer in house style.\nUser: item {item} of {task}: {generator.random():.6f}?"
    ticket = '{"queue": "billing", "urgency": "high"}'
    outputs = [ticket if value else "I am not sure about it." for value in values]
    return [
        make_row(
            task,
            item,
            {metric: value, "length": float(len(output))} if task == "tickets" else {metric: value},
            prompt=prompt,
            target=ticket,
            output=output,
        )
        for value, output in zip(values, outputs, strict=True)
    ]


def _story(task: str, item: int, generator: random.Random) -> list[SampleRow]:
    words = generator.randint(40, 160)
    base = words * generator.gauss(1.9, 0.15)
    tuned = base * (1 + generator.gauss(0.02, 0.02))
    rows = []
    merged = tuned * (1 + generator.gauss(0, 1e-5))
    for nll in (base, tuned, merged, tuned * (1 + generator.gauss(0.004, 0.004))):
        rows.append(
            make_row(
                task,
                item,
                {"word_perplexity": -nll},
                target=f"Once upon a time there was a fox named Finn, number {item}. " * 3,
                output="",
                weights={"word_perplexity": float(words)},
                log_likelihoods=(-nll,),
            )
        )
    return rows
