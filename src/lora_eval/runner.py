"""A suite on one arm of an engine, stored as a run; a run that is already there is not done again."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_eval.engines.parallel import ALONE, Processes
from lora_eval.models import hardware_info, package_versions
from lora_eval.protocols import Engine, Progress, Suite
from lora_eval.records import Run, Variant, Work
from lora_eval.runstore import has_run, read_run, write_run
from lora_eval.schema import read_record

# What decides an arm's answers: a stored run with all of these equal is the same run.
_IDENTITY = (
    "arm",
    "suite_fingerprint",
    "engine",
    "dtype",
    "quantization",
    "seeds",
    "limit",
    "packages",
    "status",
)


@dataclass(slots=True)
class Spent:
    """What an arm's answers have cost before its run is stored: the engine's totals, and seconds."""

    work: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def describe_run(
    suite: Suite,
    engine: Engine,
    arm: str,
    *,
    variant: Variant,
    quantization: dict[str, Any] | None = None,
    limit: int | None = None,
    seeds: dict[str, int] | None = None,
    notes: tuple[str, ...] = (),
    processes: Processes = ALONE,
) -> Run:
    """Return the header of the run that this would be, without results."""
    return Run(
        arm=arm,
        variant=variant,
        suite=suite.name,
        suite_fingerprint=suite.fingerprint,
        engine=engine.name,
        dtype=engine.dtype,
        quantization=quantization,
        seeds=seeds or {},
        limit=limit,
        packages=package_versions(),
        hardware=hardware_info() | ({"processes": processes.count} if processes.count > 1 else {}),
        notes=notes,
    )


def run_suite(
    suite: Suite,
    engine: Engine,
    arm: str,
    folder: Path,
    *,
    variant: Variant,
    progress: Progress,
    spent: Spent | None = None,
    processes: Processes = ALONE,
    **settings: Any,
) -> Run:
    """Score the suite on the arm and store `run.json` and `samples.parquet` in `folder`.

    Where the folder holds the same run (weights, suite, numbers, settings, packages), it is returned. Of
    several processes the first reads and writes; all return the same. `settings` are those of `describe_run`;
    `spent` is what the arm has cost so far, and is counted too.

    Raises:
        TaskError: a task does not fit the model (see the suite).
        OutputError: the folder cannot be written.
    """
    wanted = describe_run(suite, engine, arm, variant=variant, processes=processes, **settings)
    stored = processes.first(f"{arm}: stored run", lambda: stored_run(folder, wanted))
    if stored is not None:
        progress(f"{arm}: kept from the run before", 1, 1)
        return stored
    spent = spent or Spent()
    started = time.perf_counter() - spent.seconds
    before = Counter(getattr(engine, "work", ()))
    before.subtract(spent.work)
    result = suite.run(engine, arm, progress)
    run = wanted.model_copy(
        update={
            "results": tuple(result.results),
            "task_versions": result.task_versions,
            "dropped_items": result.dropped_items,
            "prompt_tokens": sum(row.prompt_tokens or 0 for row in result.rows),
            "wall_seconds": round(time.perf_counter() - started, 3),
            "work": _work(engine, before),
            "notes": (*wanted.notes, *result.notes),
        }
    )

    def write() -> Run:
        write_run(folder, run, result.rows)
        return run

    return processes.first(f"{arm}: storing", write)


def _work(engine: Engine, before: Counter[str]) -> Work | None:
    """What the engine did since then; None for an engine that does not count."""
    after = getattr(engine, "work", None)
    if after is None:
        return None
    done: dict[str, Any] = {name: after[name] - before[name] for name in Work.model_fields if name != "ratio"}
    forwarded = done["forwarded_tokens"]
    ratio = round(done["requested_tokens"] / forwarded, 3) if forwarded else None
    return Work(**done | {"seconds": round(done["seconds"], 3), "ratio": ratio})


def stored_run(folder: Path, wanted: Run) -> Run | None:
    """Return the run in the folder if it answers the same question, else None.

    Raises:
        RecordError: a run is there but cannot be read.
    """
    if not has_run(folder):
        return None
    run = read_record(folder / "run.json", Run)
    same = all(getattr(run, name) == getattr(wanted, name) for name in _IDENTITY)
    weights = (run.variant.kind, run.variant.fingerprint, run.variant.parent)
    if not same or weights != (wanted.variant.kind, wanted.variant.fingerprint, wanted.variant.parent):
        return None
    read_run(folder)
    return run
