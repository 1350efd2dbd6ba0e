"""Two CPU processes, started with the packaged file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_eval.resources import resource_folder

# Float32: the sums of a batch are taken in another order.
SAME = (
    "model.dtype=float32",
    "quantization.bnb_4bit_compute_dtype=float32",
    "training.learning_rate=1e-3",
    "lora.lora_dropout=0.0",
    "training.eval_strategy=no",
    "training.max_steps=4",
    "training.logging_steps=1",
)


@pytest.mark.slow
def test_two_processes_train_as_one_at_the_same_global_batch(
    run_python: Callable, run_training: Callable, tiny_recipe: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    file = resource_folder("templates") / "accelerate" / "cpu-two.yaml"
    launch = ["-m", "accelerate.commands.launch", "--config_file", file, "--main_process_port", "0"]
    arguments = ["--recipe", tiny_recipe, "--base", tiny_llama, "--out", tmp_path / "two", "--json", *SAME]
    done = run_python(*launch, "-m", "lora_eval.train", *arguments)
    assert done.status == 0, done.stderr
    log = json.loads(done.stdout)
    assert log["processes"] == 2
    assert done.stderr.count("24 of 24 rows train") == 1  # one process speaks
    one = run_training(tmp_path / "one", *SAME, "training.per_device_train_batch_size=4")
    assert [p["loss"] for p in log["curve"]] == pytest.approx([p.loss for p in one.log.curve], abs=1e-4)
    left, right = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("two", "one"))
    largest = max(float((left[name] - right[name]).abs().max()) for name in left)
    assert largest < 1e-5, largest
    assert all(torch.isfinite(value).all() for value in left.values())
