"""A small QLoRA run on the tiny Llama: 8 steps, an evaluation and a checkpoint on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CHATML

RECIPE = """\
schema: 1
name: tiny-qlora
model: {dtype: bfloat16}
quantization: {load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_use_double_quant: true,
               bnb_4bit_compute_dtype: bfloat16}
lora: {r: 4, lora_alpha: 8, lora_dropout: 0.05, target_modules: all-linear}
training: {max_steps: 8, per_device_train_batch_size: 2, gradient_accumulation_steps: 2, learning_rate: 0.01,
           lr_scheduler_type: cosine, max_length: 64, bf16: false, gradient_checkpointing: false,
           assistant_only_loss: true, optim: adamw_torch, eval_strategy: steps, eval_steps: 3,
           save_steps: 3, logging_steps: 2, seed: 7, use_cpu: true}
chat_template: ./chatml.jinja
data: {files: [data.jsonl], eval_files: [held_out.jsonl]}
"""
# The tiny tokenizer's ChatML with marks around the answer and the end of its turn.
MARKED = (
    "{%- for message in messages -%}{%- if message['role'] == 'assistant' -%}"
    "{{- '<|im_start|>assistant\n' -}}{% generation %}{{- message['content'] + '<|im_end|>' -}}"
    "{% endgeneration %}{{- '\n' -}}{%- else -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' -}}"
    "{%- endif -%}{%- endfor -%}"
)
COLOURS = ("red", "blue", "green", "black", "white", "pink", "grey", "gold")


def chat(*turns: str) -> dict[str, list[dict[str, str]]]:
    """A row of data: user and assistant in turn."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def save_tiny_recipe(folder: Path) -> Path:
    """Write the recipe above with its template, 24 short chats and 3 held-out ones."""
    rows = [chat(f"The {c} cat {i}?", f"{c}!") for i in range(3) for c in COLOURS]
    write_rows(folder / "data.jsonl", rows)
    write_rows(folder / "held_out.jsonl", [chat(f"The {c} dog?", f"{c}!") for c in COLOURS[:3]])
    (folder / "chatml.jinja").write_text(CHATML, "utf-8")
    (folder / "chatml_training.jinja").write_text(MARKED, "utf-8")
    path = folder / "tiny-qlora.yaml"
    path.write_text(RECIPE, "utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of `save_tiny_recipe`; shared."""
    return save_tiny_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="session")
def run_training(tiny_recipe: Path, tiny_llama: Path) -> Callable:
    """`run_training(out, "training.max_steps=2", ..., **options of train)` trains the tiny recipe."""
    from lora_eval.recipes import load_recipe
    from lora_eval.train import train

    def call(
        out: Path, *overrides: str, recipe: Path = tiny_recipe, base: Path = tiny_llama, **options: object
    ):
        return train(load_recipe(str(recipe), overrides), base, out, **options)

    return call


@pytest.fixture(scope="session")
def finished(run_training: Callable, tmp_path_factory: pytest.TempPathFactory):
    """The undisturbed run, with its checkpoints kept; shared: copy it before changing anything in it."""
    return run_training(tmp_path_factory.mktemp("runs") / "finished", keep_checkpoints=True)


@pytest.fixture(scope="session")
def make_trainer(tiny_recipe: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """`make_trainer("lora.r=8")` builds a trainer that has not run, and the plan it was built for."""
    from lora_eval.models.quiet import quiet
    from lora_eval.recipes import load_recipe
    from lora_eval.train.plan import make_plan
    from lora_eval.train.trainer import build_trainer, trainer_arguments

    def call(*overrides: str):
        with quiet():
            resolved = load_recipe(str(tiny_recipe), overrides)
            plan = make_plan(resolved, tiny_llama, "tiny", lambda what, done, total: None)
            args = trainer_arguments(plan.recipe, tmp_path_factory.mktemp("trainer"))
            return build_trainer(plan, args, lambda what, done, total: None), plan

    return call


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()
