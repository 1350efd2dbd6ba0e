"""The arms of a comparison, one after the other: each scored on the same items and stored as a run.

Base and adapters answer from one resident copy of the base's weights, quantized as in training; merged and
GPTQ folders, and adapters that change the base's own weights (PiSSA, OLoRA), are opened on their own
afterwards. Before any figure counts, the base is scored twice and once through an adapter that does nothing,
and every number must be equal.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lora_eval.engines.parallel import ALONE, Processes, parallel
from lora_eval.engines.store import ResultStore
from lora_eval.errors import InputError
from lora_eval.evaluate.arms import (
    Arms,
    adapter_variant,
    apart_notes,
    choose_quantization,
    folder_variant,
    original_arm,
    shared_variants,
)
from lora_eval.evaluate.controls import check_controls
from lora_eval.evaluate.reference import check_reference as check_with_reference
from lora_eval.evaluate.scorers import Scorer, Scorers
from lora_eval.evaluate.selection import AnySuite
from lora_eval.evaluate.sequential import Course, Decide, stopped_notes
from lora_eval.models import Resident, peak_memory_gib
from lora_eval.protocols import Engine, Progress
from lora_eval.records import Run, Sequential, Variant
from lora_eval.registry import get
from lora_eval.runner import describe_run, run_suite
from lora_eval.stats.looks import ORDER_SEED
from lora_eval.suites.catalog import load_suite, suite_of_tasks
from lora_eval.suites.combined import CombinedSuite
from lora_eval.suites.lm_eval import LmEvalSuite
from lora_eval.suites.reference import covered

# A model that is opened on its own: name, its variant, its engine, and how its base is quantized.
_Opening = tuple[str, Callable[[], Variant], Callable[[], Scorer], dict[str, Any] | None]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Where each arm's run is, and what the comparison says beside the figures."""

    runs: dict[str, Path]
    controls: dict[str, Any]
    timing: dict[str, float]
    notes: tuple[str, ...]
    sequential: Sequential | None = None


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
    engine_options: Mapping[str, Any] | None = None,
    store: ResultStore | None = None,
    check_reference: int | None = None,
    decide: Decide | None = None,
    processes: Processes = ALONE,
) -> Evaluated:
    """Score the suite on every arm and store each run in `out/ARM`; runs that are there are kept.

    Answers are looked up in `store` and kept there as they are computed. With `check_reference` so many
    items, drawn at random, are answered by stock lm-eval too, on every arm; what differs is in the controls.
    With `decide` the comparison is sequential: base and adapters answer each task look by look until it is
    decided (see `evaluate.sequential`), and folders then the same items. Called in all of the `processes`,
    which share out the requests; the first writes.

    Raises:
        InputError: arms or suite cannot be used, or nothing but folders is to be compared sequentially.
        ControlFailed: base against itself is not exactly zero; nothing of this call is stored.
    """
    arms.check()
    if decide is not None and not arms.shared:
        raise InputError(
            "a sequential comparison is decided on adapters, which answer beside their base; folders, and "
            "adapters that change their base, are scored on the same items afterwards: give --adapter"
        )
    started = time.perf_counter()
    quantization, notes = choose_quantization(arms)
    scorers = Scorers(engine, progress, batch_tokens, store, engine_options or {}, processes)
    course = Course(suite, decide) if decide is not None else None
    asked = _Asked(suite, out, scorers, check_reference, course)
    controls, timing, parent = _answer_shared(asked, arms, quantization)
    for name, variant_of, open_scorer, numbers in _openings(scorers, arms, quantization, parent):
        gc.collect()  # each arm needs the memory of the one before
        progress(f"opening {name}", 0, 1)
        variant = processes.first(f"{name}: fingerprint", variant_of)
        with contextlib.closing(open_scorer()) as scorer:
            asked.answer(scorer, {name: variant}, numbers)
            del scorer
    for served in arms.served:
        progress(f"asking {served.name}", 0, 1)
        with contextlib.closing(scorers.served(served, arms.base)) as scorer:
            asked.answer(scorer, {served.name: scorer.engine.variant}, None, here=False)
    if asked.references:
        controls["reference"] = asked.references
    timing["wall_seconds"] = round(time.perf_counter() - started, 3)
    if (peak := peak_memory_gib()) is not None:
        timing["peak_memory_gib"] = round(peak, 2)
    said = (*notes, *apart_notes(arms), *scorers.notes, *(store.notes if store else ()))
    if course is None or course.record is None:
        return Evaluated(asked.runs, controls, timing, said)
    return Evaluated(asked.runs, controls, timing, (*said, *stopped_notes(course.record)), course.record)


def _answer_shared(
    asked: _Asked, arms: Arms, quantization: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, float], str | None]:
    """Score base and adapters on one copy of the base's weights, after the controls; returns the controls,
    the seconds taken, and the base's fingerprint.
    """
    scorers, started = asked.scorers, time.perf_counter()
    scorers.progress("opening the base", 0, 1)
    with contextlib.closing(scorers.shared(arms, quantization)) as scorer:
        opened = time.perf_counter() - started
        controls = check_controls(
            parallel(scorer.engine, scorers.processes), asked.suite, arms.base_name, scorers.progress,
            identity=scorer.has_identity,
        )  # fmt: skip
        # Fingerprints read all weights: one process is enough.
        variants = scorers.processes.first("fingerprints", lambda: shared_variants(arms))
        asked.answer(scorer, variants, quantization)
        del scorer
    timing = {"opening_base_seconds": round(opened, 3), "control_seconds": controls.pop("seconds")}
    return controls, timing, variants[arms.base_name].fingerprint


def _openings(
    scorers: Scorers, arms: Arms, quantization: dict[str, Any] | None, base: str | None
) -> list[_Opening]:
    """The models that are opened on their own, adapters that change their base first."""
    apart: list[_Opening] = [
        (name, partial(adapter_variant, arms, name, base),
         partial(scorers.apart, arms, name, quantization), quantization)
        for name in arms.apart
    ]  # fmt: skip
    return apart + [
        (other.name, partial(folder_variant, other), partial(scorers.folder, other, arms.dtype), None)
        for other in [*original_arm(arms, quantization), *arms.others]
    ]


@dataclass(slots=True)
class _Asked:
    """One suite, put to one model after the other."""

    suite: AnySuite
    out: Path
    scorers: Scorers
    check_reference: int | None
    course: Course | None = None
    runs: dict[str, Path] = field(default_factory=dict)
    references: dict[str, Any] = field(default_factory=dict)

    def answer(
        self,
        scorer: Scorer,
        variants: Mapping[str, Variant],
        quantization: dict[str, Any] | None,
        *,
        here: bool = True,
    ) -> None:
        """Run the suite on each arm of the engine; lm-eval can check only one that computes `here`."""
        engine, processes = self.scorers.stored(scorer, variants, quantization), self.scorers.processes
        course, suite = self.course, self.suite
        settings = {name: _settings(suite, variant, quantization, scorer.notes, course)
                    for name, variant in variants.items()}  # fmt: skip
        if course is not None and course.record is None:
            headers = {name: describe_run(suite, engine, name, **own) for name, own in settings.items()}
            course.run(engine, headers, self.scorers.progress, processes)
        for name, own in settings.items():
            self.runs[name] = self.out / name
            run_suite(course.selected() if course else suite, engine, name, self.runs[name],
                      progress=self.scorers.progress, processes=processes,
                      spent=course.spent.get(name) if course else None, **own)  # fmt: skip
        if self.check_reference is None or not here:
            return
        if hasattr(scorer.engine, "drafts"):
            scorer.engine.drafts = None
        for name in variants:
            found = check_with_reference(
                parallel(scorer.engine, self.scorers.processes), self.suite, name,
                self.check_reference, self.scorers.progress, self.scorers.processes,
            )  # fmt: skip
            self.references[name] = found.model_dump()


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
    chosen = engine if engine is not None else covered(get("engine", "transformers")(resident))
    settings = _settings(suite, variant, quantization, resident.notes)
    return run_suite(suite, chosen, arm, run_folder, progress=progress, **settings)


def _settings(
    suite: AnySuite,
    variant: Variant,
    quantization: dict[str, Any] | None,
    notes: tuple[str, ...],
    course: Course | None = None,
) -> dict[str, Any]:
    """What a run's header says beside suite, engine and arm."""
    seed = suite.record.seed
    order = {ORDER_SEED: seed} if course else {}
    return {
        "variant": variant,
        "quantization": quantization,
        "limit": suite.limit,
        "seeds": {"fewshot": seed, "sampling": seed} | order,
        "notes": () if quantization else notes,
    }
