"""The arms of a comparison, one after the other: each scored on the same items and stored as a run.

Base and adapters answer from one resident copy of the base's weights, quantized as in training; merged and
GPTQ folders are opened on their own afterwards. Before any figure counts, the base is scored twice and once
through an adapter that does nothing, and every number must be equal.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_eval.engines.store import ResultStore
from lora_eval.errors import InputError
from lora_eval.evaluate.arms import (
    Arms,
    choose_dtype,
    choose_quantization,
    folder_variant,
    original_arm,
    shared_variants,
)
from lora_eval.evaluate.controls import AnySuite, check_controls
from lora_eval.evaluate.reference import check_reference as check_with_reference
from lora_eval.evaluate.scorers import Scorers
from lora_eval.models import Resident, open_folder, open_resident
from lora_eval.protocols import Engine, Progress
from lora_eval.records import Run, Variant
from lora_eval.registry import get
from lora_eval.runner import run_suite
from lora_eval.suites.catalog import load_suite, suite_of_tasks
from lora_eval.suites.combined import CombinedSuite
from lora_eval.suites.lm_eval import LmEvalSuite


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Where each arm's run is, and what the comparison says beside the figures."""

    runs: dict[str, Path]
    controls: dict[str, Any]
    timing: dict[str, float]
    notes: tuple[str, ...]


def open_suite(
    names: Sequence[str] = (),
    *,
    tasks: Sequence[str] = (),
    include_path: str | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    seed: int | None = None,
    fixed_fewshot: bool = False,
) -> AnySuite:
    """Return the suites by name or path, and tasks by name, as one suite that can be run.

    Raises:
        PluginError, RecordError, TaskError: a suite or task is unknown, faulty, or lacks its data.
    """
    records = [load_suite(name) for name in names]
    if tasks:
        records.append(suite_of_tasks(tasks, include_path))
    if not records:
        raise InputError("nothing to run: give a suite or tasks")
    parts = []
    for record, folder in records:
        changes: dict[str, Any] = {} if seed is None else {"seed": seed}
        if num_fewshot is not None:
            entries = (entry.model_copy(update={"num_fewshot": num_fewshot}) for entry in record.entries())
            changes["tasks"] = tuple(entries)
        chosen = record.model_copy(update=changes)
        parts.append(LmEvalSuite(chosen, folder, limit=limit, fixed_fewshot=fixed_fewshot))
    return parts[0] if len(parts) == 1 else CombinedSuite(parts)


def evaluate_arms(
    arms: Arms,
    suite: AnySuite,
    out: Path,
    *,
    progress: Progress,
    batch_tokens: int | None = None,
    engine: str = "transformers",
    store: ResultStore | None = None,
    check_reference: int | None = None,
) -> Evaluated:
    """Score the suite on every arm and store each run in `out/ARM`; runs that are there are kept.

    Answers are looked up in `store` and kept there as they are computed. With `check_reference` about so many
    items are answered by stock lm-eval too, on every arm; what differs is in the controls.

    Raises:
        InputError: arms or suite cannot be used.
        ControlFailed: base against itself is not exactly zero; nothing of this call is stored.
    """
    arms.check()
    started = time.perf_counter()
    quantization, notes = choose_quantization(arms)
    runs: dict[str, Path] = {}
    progress("opening the base", 0, 1)
    resident = open_resident(
        arms.base,
        dict(arms.adapters),
        base_name=arms.base_name,
        dtype=choose_dtype(arms),
        quantization=quantization,
        identity_control=True,
    )
    opened = time.perf_counter() - started
    scorers = Scorers(engine, batch_tokens, store)
    # Controls get an engine that neither drafts nor remembers: they would compare an answer with its copy.
    controls = check_controls(scorers.open(resident), suite, arms.base_name, progress)
    references: dict[str, Any] = {}

    def answer(model: Resident, variants: dict[str, Variant], quantized: dict[str, Any] | None) -> None:
        scorer = scorers.open_stored(model, variants, quantized)
        for name, variant in variants.items():
            runs[name] = out / name
            evaluate(model, suite, name, runs[name], variant=variant, quantization=quantized,
                     engine=scorer, progress=progress)  # fmt: skip
            if check_reference is not None:
                found = check_with_reference(scorers.open(model), suite, name, check_reference, progress)
                references[name] = found.model_dump()

    answer(resident, shared_variants(arms), quantization)
    del resident
    scorers.close()
    for other in [*original_arm(arms, quantization), *arms.others]:
        progress(f"opening {other.name}", 0, 1)
        answer(open_folder(other.path, name=other.name, dtype=arms.dtype),
               {other.name: folder_variant(other)}, None)  # fmt: skip
        scorers.close()
    if references:
        controls["reference"] = references
    timing = {"opening_base_seconds": round(opened, 3), "control_seconds": controls.pop("seconds")}
    timing["wall_seconds"] = round(time.perf_counter() - started, 3)
    return Evaluated(runs, controls, timing, (*notes, *scorers.notes))


def evaluate(
    resident: Resident,
    suite: AnySuite,
    arm: str,
    run_folder: Path,
    *,
    variant: Variant,
    progress: Progress,
    quantization: dict[str, Any] | None = None,
    engine: Engine | None = None,
) -> Run:
    """Score one arm of a resident model and store its run; a run that is there is kept (see `runner`)."""
    return run_suite(
        suite,
        engine if engine is not None else get("engine", "transformers")(resident),
        arm,
        run_folder,
        variant=variant,
        progress=progress,
        quantization=quantization,
        limit=suite.limit,
        seeds={"fewshot": suite.record.seed, "sampling": suite.record.seed},
        notes=() if quantization else resident.notes,
    )
