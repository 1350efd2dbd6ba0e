"""What makes a training step of a small model cheap on a CPU: the embedded recipe, one change at a time.

    python benchmarks/training_steps.py [STEPS]

Prints trained rows' tokens for each CPU second of the process (not wall time: other work on the machine then
counts little), and the ratio to the first line. Padding is no token.
"""

import sys
import tempfile
import time
from pathlib import Path

from lora_eval.recipes import load_recipe
from lora_eval.train import resolve_base
from lora_eval.train.plan import make_plan
from lora_eval.train.quiet import quiet, without_gptqmodel
from lora_eval.train.trainer import build_trainer, trainer_arguments

PADDED = ("training.packing=false", "training.per_device_train_batch_size=10")
VARIANTS: dict[str, tuple[str, ...]] = {
    "padded": PADDED,
    "padded, eager attention": (*PADDED, "model.attn_implementation=eager"),
    "padding_free": (*PADDED, "training.padding_free=true"),
    "padding_free, eager attention": (
        *PADDED,
        "training.padding_free=true",
        "model.attn_implementation=eager",
    ),
    "packed, 512": (),
    "packed, 512, eager attention": ("model.attn_implementation=eager",),
    "packed, 256, batch 2, eager": (
        "model.attn_implementation=eager",
        "training.max_length=256",
        "training.gradient_accumulation_steps=2",
    ),
    "padded, bf16 compute": (*PADDED, "quantization.bnb_4bit_compute_dtype=bfloat16"),
    "padded, gradient checkpointing": (*PADDED, "training.gradient_checkpointing=true"),
    "padded, no quantization": (*PADDED, "quantization={}"),
    "padded, paged_adamw_8bit": (*PADDED, "training.optim=paged_adamw_8bit"),
}


def tokens_per_cpu_second(overrides: tuple[str, ...], steps: int) -> tuple[float, float]:
    """Tokens for each CPU second over `steps` steps after two of warm-up; and tokens in a step."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        tokens = seconds = 0.0

        def on_step_begin(self, args: object, state: object, control: object, **_: object) -> None:
            self.begun = time.process_time()

        def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
            if state.global_step > 2:
                self.seconds += time.process_time() - self.begun

    resolved = load_recipe(
        "pocket-ticket", (f"training.max_steps={steps + 2}", "training.save_strategy=no", *overrides)
    )
    plan = make_plan(resolved, *resolve_base(resolved), lambda what, done, total: None)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(
            plan, trainer_arguments(plan.recipe, Path(folder)), lambda what, done, total: None
        )
        clock = Clock()
        trainer.add_callback(clock)
        collate = trainer.data_collator
        seen: list[int] = []

        def counted(rows: list[dict[str, list[int]]]) -> object:
            seen.append(sum(len(row["input_ids"]) for row in rows))
            return collate(rows)

        trainer.data_collator = counted
        trainer.train()
    batches = seen[2 * trainer.args.gradient_accumulation_steps :]
    tokens = sum(batches[: steps * trainer.args.gradient_accumulation_steps])
    return tokens / clock.seconds, tokens / steps


def main() -> None:
    """Measure every variant, the first one as the measure of the others."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    first = None
    print(f"{'variant':<34}{'tokens a step':>14}{'tokens/CPU s':>14}{'ratio':>8}")
    for name, overrides in VARIANTS.items():
        with quiet(), without_gptqmodel():
            rate, size = tokens_per_cpu_second(overrides, steps)
        first = first or rate
        print(f"{name:<34}{size:>14.0f}{rate:>14.0f}{rate / first:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
