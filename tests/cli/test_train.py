"""`lora-eval train`, and the same under a launcher's module name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lora_eval.resources import resource_folder
from tests.train.conftest import save_tiny_recipe


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> Path:
    return save_tiny_recipe(tmp_path)


def test_a_run_from_the_command_line(
    run_cli: Callable,
    tiny_recipe: Path,
    tiny_llama: Path,
    tmp_path: Path,
) -> None:
    arguments = ("train", "--recipe", tiny_recipe, "--base", tiny_llama, "--out", tmp_path / "out")
    overrides = ("training.max_steps=2", "training.eval_strategy=no", "training.save_strategy=no")
    result = run_cli(*arguments, "--json", *overrides)
    assert result.status == 0
    log = json.loads(result.stdout)
    assert log["adapter"] == str(tmp_path / "out")
    assert (log["steps"], log["reload"]["equal"]) == (2, True)
    assert "24 of 24 rows train" in result.stderr
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    again = run_cli(*arguments, *overrides)
    assert (again.status, again.stdout) == (2, "")
    assert "holds a finished adapter" in again.stderr


def test_quiet_prints_nothing(run_cli: Callable, tiny_recipe: Path, tiny_llama: Path, tmp_path: Path) -> None:
    overrides = ("training.max_steps=1", "training.eval_strategy=no", "training.save_strategy=no")
    result = run_cli(
        "train", "-q", "--recipe", tiny_recipe, "--base", tiny_llama, "--out", tmp_path / "out", *overrides
    )
    assert (result.status, result.stdout, result.stderr) == (0, "", "")


def test_the_module_is_the_same_command(runner: Callable, tmp_path: Path) -> None:
    arguments = ("--recipe", "none.yaml", "--out", tmp_path / "out")
    result = runner(*arguments, module="lora_eval.train")
    assert result.status == 2
    assert "none.yaml" in result.stderr
    assert "Traceback" not in result.stderr
    other = runner(*arguments, module="lora_eval.train", env={"RANK": "1"})
    assert (other.status, other.stderr) == (2, "")  # the first process says it


def test_the_help_names_what_a_launcher_needs(run_cli: Callable) -> None:
    result = run_cli("train", "--help")
    assert "accelerate launch --config_file" in result.stdout
    assert "SECTION.KEY=VALUE" in result.stdout


def test_the_packaged_launch_files_are_read_by_accelerate() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    folder = resource_folder("templates") / "accelerate"
    names = {path.name for path in folder.glob("*.yaml")}
    assert names == {"cpu-two.yaml", "ddp.yaml", "fsdp2-qlora.yaml", "single-gpu.yaml"}
    for name in names:
        config = load_config_from_file(str(folder / name))
        written = yaml.safe_load((folder / name).read_text("utf-8"))
        assert config.distributed_type.value in (written["distributed_type"], "NO")
        assert config.num_processes == written["num_processes"]
