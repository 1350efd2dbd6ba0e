"""What makes a training step of a small model cheap on a CPU: the embedded recipe, one change at a time.

    python benchmarks/training_steps.py [ROUNDS]

All variants take one step in turn, ROUNDS times, so that a busy moment hits all of them. The best step
counts: tokens (padding is none) for each CPU second of the process, and the ratio to the first line.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lora_eval.models.quiet import quiet, without_gptqmodel
from lora_eval.recipes import load_recipe
from lora_eval.train import resolve_base
from lora_eval.train.plan import make_plan
from lora_eval.train.trainer import build_trainer, trainer_arguments

PADDED = ("training.packing=false", "training.per_device_train_batch_size=10")
FREE = (*PADDED, "training.padding_free=true")
EAGER = ("model.attn_implementation=eager",)
VARIANTS: dict[str, tuple[str, ...]] = {
    "padded": PADDED,
    "padded, eager attention": (*PADDED, *EAGER),
    "padding_free": FREE,
    "padding_free, eager attention": (*FREE, *EAGER),
    "packed, 512": (),
    "packed, 512, eager attention": EAGER,
    "packed, 256, eager attention": (*EAGER, "training.max_length=256"),
    "padded, bf16 compute": (*PADDED, "quantization.bnb_4bit_compute_dtype=bfloat16"),
    "padded, gradient checkpointing": (*PADDED, "training.gradient_checkpointing=true"),
    "padded, no quantization": (*PADDED, "quantization={}"),
    "padded, paged_adamw_8bit": (*PADDED, "training.optim=paged_adamw_8bit"),
}


class Stepper:
    """A trainer of the embedded recipe that takes one step when asked."""

    def __init__(self, overrides: tuple[str, ...], folder: Path) -> None:
        resolved = load_recipe("pocket-ticket", ("data.max_rows=600", *overrides))
        plan = make_plan(resolved, *resolve_base(resolved), lambda what, done, total: None)
        args = trainer_arguments(plan.recipe, folder)
        self.trainer = build_trainer(plan, args, lambda what, done, total: None)
        self.trainer.create_optimizer()
        self.trainer.model.train()
        self.batches = iter(self.trainer.get_train_dataloader())
        self.best = 0.0

    def step(self) -> None:
        """Take one step and keep its rate if it is the best so far."""
        batch = next(self.batches)
        tokens = _tokens(batch)
        begun = time.process_time()
        self.trainer.compute_loss(self.trainer.model, dict(batch)).backward()
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()
        self.best = max(self.best, tokens / (time.process_time() - begun))


def _tokens(batch: dict[str, Any]) -> int:
    mask = batch.get("attention_mask")
    return int(mask.sum()) if mask is not None else int(batch["input_ids"].numel())


def main() -> None:
    """Measure every variant, the first one as the measure of the others."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    with tempfile.TemporaryDirectory() as folder, quiet(), without_gptqmodel():
        steppers = {name: Stepper(overrides, Path(folder)) for name, overrides in VARIANTS.items()}
        for _ in range(rounds + 1):
            for stepper in steppers.values():
                stepper.step()
    first = next(iter(steppers.values())).best
    print(f"| {'variant':<32} | tokens / CPU s | ratio |\n|{'-' * 34}|---------------:|------:|")
    for name, stepper in steppers.items():
        print(f"| {name:<32} | {stepper.best:>14.0f} | {stepper.best / first:>5.2f} |")


if __name__ == "__main__":
    main()
