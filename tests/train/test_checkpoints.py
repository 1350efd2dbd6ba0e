"""A checkpoint is resumed from only if each of its files is there and is what was written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lora_eval.train.checkpoints import MANIFEST, is_whole, newest_whole, remove_broken, seal


@pytest.fixture
def checkpoints(finished, tmp_path: Path) -> Path:
    return shutil.copytree(finished.out / "checkpoints", tmp_path / "checkpoints")


def test_the_newest_of_a_real_run(checkpoints: Path) -> None:
    assert sorted(path.name for path in checkpoints.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-8"]
    assert newest_whole(checkpoints) == checkpoints / "checkpoint-8"


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
        "adapter_model.safetensors",
        MANIFEST,
    ],
)
def test_a_missing_or_damaged_file_gives_the_one_before(checkpoints: Path, name: str) -> None:
    file = checkpoints / "checkpoint-8" / name
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert newest_whole(checkpoints) == checkpoints / "checkpoint-6"
    file.unlink()
    assert newest_whole(checkpoints) == checkpoints / "checkpoint-6"
    remove_broken(checkpoints)
    assert not (checkpoints / "checkpoint-8").exists()


def test_a_checkpoint_without_its_optimizer_is_never_whole(checkpoints: Path) -> None:
    """`save_only_model: true` resumes without an error, and wrongly."""
    newest = checkpoints / "checkpoint-8"
    (newest / "optimizer.pt").unlink()
    seal(newest)
    assert not is_whole(newest)


def test_numbers_are_compared_as_numbers(checkpoints: Path) -> None:
    shutil.copytree(checkpoints / "checkpoint-6", checkpoints / "checkpoint-10")
    assert newest_whole(checkpoints) == checkpoints / "checkpoint-10"
    assert newest_whole(checkpoints / "nowhere") is None
