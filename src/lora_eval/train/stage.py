"""The order of a training run, from the recipe to a verified adapter folder."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_eval.errors import LoraEvalError
from lora_eval.models import peak_memory_gib, write_lineage
from lora_eval.models.processes import check_launch, rank, world_size
from lora_eval.models.quiet import quiet, without_gptqmodel
from lora_eval.models.trained_base import TRAINED_BASE, observe
from lora_eval.recipes import ResolvedRecipe
from lora_eval.records import Lineage, ReloadCheck, TrainingLog
from lora_eval.schema import write_record
from lora_eval.train.checkpoints import step_of
from lora_eval.train.folder import OutputFolder, naming_disk_faults
from lora_eval.train.plan import Plan, make_plan
from lora_eval.train.processes import from_first
from lora_eval.train.rows import describe

Progress = Callable[[str, int, int], None]
_FLOAT32 = 4
_STATES = 2  # Adam's moments; 8-bit optimizers need less


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished run: its folder and what is recorded in it. In processes other than the first, which write
    and verify nothing, `log` and `lineage` are None.
    """

    out: Path
    log: TrainingLog | None
    lineage: Lineage | None


@dataclass(frozen=True, slots=True)
class Trained:
    """What is known when the last step is done and the trainer can go."""

    steps: int
    epochs: float
    history: list[dict[str, Any]]
    wall_seconds: float
    peak_memory_gib: float | None
    trainable_parameters: int
    base_dtype: str
    device: str
    resumed_from: int | None
    live: list[Any]


def train(
    resolved: ResolvedRecipe,
    base: Path,
    out: Path,
    *,
    base_name: str | None = None,
    keep_checkpoints: bool = False,
    verbose: bool = False,
    progress: Progress = lambda what, done, total: None,
    notify: Callable[[str], None] = lambda text: None,
) -> TrainResult:
    """Train an adapter, save it to `out`, and prove that what was saved is what was trained.

    Called in every process of a launcher; only the first writes. `base_name` is what the adapter's
    configuration calls its base (default: the folder). An unfinished run of the same recipe, base and data
    in `out` is resumed from its newest checkpoint that is whole. `notify` gets lines for people.

    Raises:
        InputError: something given cannot be used (nothing is left behind).
        OutputError: `out` is not empty and no such run, or the disk is full.
        VerificationFailed: the saved adapter differs from the live one; it is not put in place.
    """
    check_launch()
    folder = OutputFolder(out)
    if rank() == 0:
        folder.check()
    with quiet(verbose), without_gptqmodel():
        plan = make_plan(resolved, base, base_name or str(base), progress)
        for line in describe(plan.counts, resolved.recipe.training.get("max_length", 1024)):
            notify(line)
        return _run(plan, folder, keep_checkpoints, progress, notify)


def _run(
    plan: Plan,
    folder: OutputFolder,
    keep_checkpoints: bool,
    progress: Progress,
    notify: Callable[[str], None],
) -> TrainResult:
    from lora_eval.train.trainer import trainer_arguments

    # Before the folder is claimed: this also connects the processes.
    args = trainer_arguments(plan.recipe, folder.checkpoints)
    checkpoint = _claim(folder, {**plan.identity, "processes": str(world_size())})
    if checkpoint is not None:
        notify(f"resuming after step {step_of(checkpoint)}")
    try:
        with naming_disk_faults(folder.path):
            trained = _train(plan, folder, args, checkpoint, progress)
            if rank() != 0:
                return TrainResult(folder.path, None, None)
            log, lineage = _verify_and_record(plan, folder, trained)
            folder.finish(keep_checkpoints=keep_checkpoints)
    except BaseException:
        if rank() == 0 and folder.clean_up():
            notify(f"{folder.path}: checkpoints are kept; the same command resumes")
        raise
    return TrainResult(folder.path, log, lineage)


def _claim(folder: OutputFolder, identity: dict[str, str]) -> Path | None:
    """The checkpoint to resume from, as the first process finds it; all raise what it raises."""
    outcome: Path | LoraEvalError | None = None
    if rank() == 0:
        try:
            outcome = folder.claim(identity)
        except LoraEvalError as error:
            outcome = error
    outcome = from_first(outcome)
    if isinstance(outcome, LoraEvalError):
        raise outcome
    return outcome


def _train(
    plan: Plan, folder: OutputFolder, args: Any, checkpoint: Path | None, progress: Progress
) -> Trained:
    from lora_eval.train.reload import live_logits, probe_rows
    from lora_eval.train.trainer import build_trainer

    trainer = build_trainer(plan, args, progress)
    trainable = sum(item.numel() for item in trainer.model.parameters() if item.requires_grad)
    if rank() == 0:
        checkpoints = 0 if args.save_strategy == "no" else (args.save_total_limit or 2) * (1 + _STATES)
        folder.need(trainable * _FLOAT32 * (1 + checkpoints))
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - started
    trainer.save_model(str(folder.unfinished), _internal_call=True)
    return Trained(
        steps=trainer.state.global_step,
        epochs=float(trainer.state.epoch or 0.0),
        history=list(trainer.state.log_history),
        wall_seconds=seconds,
        peak_memory_gib=peak_memory_gib(),
        trainable_parameters=trainable,
        base_dtype=str(trainer.model.base_model.model.dtype).removeprefix("torch."),
        device=str(args.device),
        resumed_from=step_of(checkpoint) if checkpoint else None,
        live=live_logits(trainer, probe_rows(plan.rows)),
    )


def _verify_and_record(plan: Plan, folder: OutputFolder, trained: Trained) -> tuple[TrainingLog, Lineage]:
    from lora_eval.train.reload import check_reload, probe_rows
    from lora_eval.train.save import make_lineage, save_companions
    from lora_eval.train.trainer import open_base

    gc.collect()  # the trainer's model first, then another one: never both in memory
    save_companions(plan, folder.unfinished)
    base = open_base(plan, trained.device)
    seen = observe(base) if plan.recipe.quantization else None
    if seen is not None:
        write_record(folder.unfinished / TRAINED_BASE, seen)
    reload = check_reload(base, folder.unfinished, trained.live, probe_rows(plan.rows))
    log = _log(plan, trained, reload)
    write_record(folder.unfinished / "training_log.json", log)
    lineage = make_lineage(
        plan,
        folder.unfinished,
        folder.path.resolve(),
        dtype=trained.base_dtype,
        seconds=trained.wall_seconds,
    )
    write_lineage(folder.unfinished, lineage)
    return log, lineage


def _log(plan: Plan, trained: Trained, reload: ReloadCheck) -> TrainingLog:
    from lora_eval.train.save import loss_curve

    curve = loss_curve(trained.history)
    losses = [point.loss for point in curve if point.loss is not None]
    notes = []
    if reload.effect == 0.0:
        notes.append("the adapter changes no logit: nothing was learnt")
    return TrainingLog(
        recipe=plan.recipe.name,
        base=plan.base_name,
        rows=plan.counts,
        eval_rows=plan.eval_counts,
        steps=trained.steps,
        epochs=trained.epochs,
        trained_tokens=round(plan.counts.trained_tokens * trained.epochs),
        trainable_parameters=trained.trainable_parameters,
        processes=world_size(),
        loss_start=losses[0] if losses else None,
        loss_end=losses[-1] if losses else None,
        curve=curve,
        wall_seconds=trained.wall_seconds,
        peak_memory_gib=trained.peak_memory_gib,
        resumed_from_step=trained.resumed_from,
        reload=reload,
        notes=tuple(notes),
    )
