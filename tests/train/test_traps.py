"""The four traps of quantized training, each closed (docs/training.md tells what they do)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lora_eval.errors import InputError
from lora_eval.models.processes import check_launch
from lora_eval.train.processes import check_started
from tests.train.conftest import adapter_bytes


def gradients(trainer) -> dict:
    import torch

    torch.manual_seed(0)
    trainer.model.train()
    trainer.model.zero_grad()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_an_evaluation_changes_no_gradient(make_trainer: Callable) -> None:
    import torch

    from lora_eval.models.quiet import quiet

    trainer, _ = make_trainer("lora.lora_dropout=0.0", "lora.init_lora_weights=false")
    with quiet():
        before = gradients(trainer)
        trainer.evaluate()
        after = gradients(trainer)
    assert all(float(gradient.abs().max()) > 0 for gradient in before.values())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_kernels_that_repack_weights_are_off(make_trainer: Callable) -> None:
    modules = [m for m in make_trainer()[0].model.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    assert len(modules) == 14  # seven projections in each of two layers
    assert not any(module.support_avx512bf16_for_cpu for module in modules)


def test_adapters_are_trained_in_float32(make_trainer: Callable) -> None:
    import torch

    trained = [p for p in make_trainer()[0].model.parameters() if p.requires_grad]
    assert len(trained) == 28
    assert {parameter.dtype for parameter in trained} == {torch.float32}


def test_small_updates_are_not_lost(run_training: Callable, make_trainer: Callable, tmp_path: Path) -> None:
    """In bf16, as TRL leaves the adapters, most elements of A do not move at this learning rate."""
    import torch
    from safetensors.torch import load_file

    overrides = ("training.learning_rate=2e-5", "training.max_steps=6", "training.eval_strategy=no")
    run_training(tmp_path / "slow", *overrides, "training.save_strategy=no")
    trained = load_file(tmp_path / "slow" / "adapter_model.safetensors")
    state = make_trainer(*overrides)[0].model.state_dict()
    start = {name: state[name.replace(".weight", ".default.weight")] for name in trained}
    names = [name for name in trained if "lora_A" in name]
    moved = torch.cat([(trained[name] != start[name]).flatten() for name in names])
    assert float(moved.float().mean()) == 1.0


def test_a_resumed_run_ends_as_an_undisturbed_one(finished, run_training: Callable, tmp_path: Path) -> None:
    """Killed after step 5, it resumes after step 3 with the weights in the dtype it began with."""

    class Killed(Exception):
        pass

    def kill(what: str, done: int, total: int) -> None:
        if what.startswith("training") and done == 5:
            raise Killed

    out, said = tmp_path / "out", []
    with pytest.raises(Killed):
        run_training(out, progress=kill, notify=said.append)
    assert not (out / "adapter_config.json").exists()
    assert "the same command resumes" in said[-1]
    result = run_training(out, notify=said.append)
    assert "resuming after step 3" in said
    assert result.log.resumed_from_step == 3
    assert result.log.steps == 8
    assert adapter_bytes(out) == adapter_bytes(finished.out)
    assert result.lineage.variants[-1].fingerprint == finished.lineage.variants[-1].fingerprint
    assert not (out / "checkpoints").exists()


def test_two_runs_are_equal_in_every_byte(finished, run_training: Callable, tmp_path: Path) -> None:
    again = run_training(tmp_path / "again")
    assert adapter_bytes(again.out) == adapter_bytes(finished.out)
    assert [p.loss for p in again.log.curve] == [p.loss for p in finished.log.curve]


@pytest.mark.parametrize(
    "environment",
    [
        {"ACCELERATE_MIXED_PRECISION": "no"},
        {"MASTER_PORT": "29500"},
        {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500", "WORLD_SIZE": "2", "RANK": "0"},
        {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500", "OMPI_COMM_WORLD_SIZE": "2"},
    ],
)
def test_launches_that_start_what_was_asked_for(environment: dict[str, str]) -> None:
    check_launch(environment)


def test_one_process_where_two_were_asked_for(
    run_python: Callable, tiny_recipe: Path, tmp_path: Path
) -> None:
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--mixed_precision", "no"]
    arguments = ["-m", "lora_eval.train", "--recipe", tiny_recipe, "--out", tmp_path / "out"]
    done = run_python(*launch, "--num_machines", "1", "--dynamo_backend", "no", *arguments)
    assert done.status != 0
    assert "asked for several processes and started one" in done.stderr
    assert "cpu-two.yaml" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_trainer_with_fewer_processes_than_the_launcher(make_trainer: Callable) -> None:
    trainer, _ = make_trainer()
    check_started(trainer, {})
    with pytest.raises(InputError, match="started 2 processes, but the trainer runs with 1"):
        check_started(trainer, {"WORLD_SIZE": "2"})
    with pytest.raises(InputError, match="FSDP was asked for"):
        check_started(trainer, {"ACCELERATE_USE_FSDP": "true"})
