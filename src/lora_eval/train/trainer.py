"""TRL's SFTTrainer for a plan, with what it does to a quantized model undone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_eval.errors import InputError
from lora_eval.models import load_base
from lora_eval.models.processes import world_size
from lora_eval.recipes import attention_implementation, lora_config, sft_config
from lora_eval.records import Recipe
from lora_eval.train.checkpoints import sealing_callback
from lora_eval.train.plan import Plan
from lora_eval.train.processes import check_started
from lora_eval.train.rows import Row

_STRATEGIES = ("eval_strategy", "logging_strategy", "save_strategy")


def trainer_arguments(recipe: Recipe, folder: Path) -> Any:
    """Return the SFTConfig: the recipe's section, and what follows from rows being made here.

    Rows are masked and cut already, so TRL is not to ask for conversations, and need not be told
    `max_length`, which it refuses together with `padding_free`. Packing needs it, and does the rest.
    """
    packing = bool(recipe.training.get("packing", False))
    extra: dict[str, Any] = {"assistant_only_loss": False, "disable_tqdm": True}
    if not packing:
        extra["max_length"] = None
        extra["dataset_kwargs"] = {
            **(recipe.training.get("dataset_kwargs") or {}),
            "skip_prepare_dataset": True,
        }
    for key, value in (("report_to", "none"), ("logging_first_step", True), ("save_total_limit", 2)):
        if key not in recipe.training:
            extra[key] = value
    # YAML reads a bare `no` as false.
    extra |= {key: "no" for key in _STRATEGIES if recipe.training.get(key) is False}
    if world_size() > 1 and "ddp_find_unused_parameters" not in recipe.training:
        extra["ddp_find_unused_parameters"] = False  # LoRA uses all; the search costs, and changes the sums
    return sft_config(recipe, folder, **extra)


def build_trainer(plan: Plan, args: Any, progress: Callable[[str, int, int], None]) -> Any:
    """Return a trainer that is ready to run: adapters in float32, kernels that keep the gradients.

    Raises:
        ModelError: the base cannot be loaded.
        InputError: the options do not fit the base, or not all processes take part.
    """
    from transformers.trainer_callback import PrinterCallback, ProgressCallback
    from trl import SFTTrainer

    from lora_eval.chat import training_tokenizer

    try:
        trainer = SFTTrainer(
            model=open_base(plan, str(args.device)),
            args=args,
            train_dataset=_dataset(plan.rows),
            eval_dataset=_dataset(plan.eval_rows) if plan.eval_rows else None,
            processing_class=training_tokenizer(plan.tokenizer),
            peft_config=lora_config(plan.recipe),
            callbacks=[_progress_callback(progress), sealing_callback()],
        )
    except (ValueError, KeyError) as error:
        raise InputError(f"recipe '{plan.recipe.name}' does not fit this base or machine: {error}") from error
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    recast_adapters(trainer.model)
    check_started(trainer)
    return trainer


def open_base(plan: Plan, device: str) -> Any:
    """Return the base as the recipe wants it: quantization, dtype, attention. Its NF4 weights stay as they
    are, whatever is evaluated in between (see `models.resident.keep_quantized_weights`).
    """
    recipe = plan.recipe
    return load_base(
        plan.base,
        dtype=recipe.model.get("dtype", "auto"),
        quantization=recipe.quantization or None,
        attn_implementation=attention_implementation(recipe),
        device=device,
    )


def recast_adapters(model: Any) -> int:
    """Make all trained weights float32; returns how many were not.

    SFTTrainer casts the adapters of a quantized base to bf16 (`sft_trainer.py`, TRL 1.16). At a learning
    rate of 1e-4, 46 % of the elements of `lora_A` then never move, and a resumed run goes on in float32.
    """
    import torch

    recast = 0
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.to(torch.float32)
            recast += 1
    return recast


def _dataset(rows: Sequence[Row]) -> Any:
    from datasets import Dataset

    columns = {"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]}
    return Dataset.from_dict(columns)


def _progress_callback(progress: Callable[[str, int, int], None]) -> Any:
    """Return a callback that tells each step, with the newest loss, to `progress`."""
    from transformers import TrainerCallback

    class ProgressReport(TrainerCallback):  # type: ignore[misc]
        said = "training"

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                self.said = f"training, loss {float(logs['loss']):.3f}"

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress(self.said, state.global_step, state.max_steps)

    return ProgressReport()
