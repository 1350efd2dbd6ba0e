"""Bad input, end to end: exit status 2, one clear message, no traceback, nothing half-written."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import save_tiny_llama, save_tiny_tokenizer

RECIPE = """\
name: tiny
model: {dtype: float32}
lora: {r: 4, lora_alpha: 8, target_modules: all-linear}
training: {max_steps: 2, per_device_train_batch_size: 1, learning_rate: 0.001, max_length: 128, bf16: false,
           use_cpu: true, gradient_checkpointing: false, assistant_only_loss: true, report_to: none}
data: {files: [data.jsonl]}
"""
ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A complete recipe with one good row of data beside it."""
    (tmp_path / "data.jsonl").write_text(json.dumps(ROW) + "\n", "utf-8")
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE, "utf-8")
    return path


@pytest.fixture
def check_refused(run_cli: Callable, tmp_path: Path) -> Callable:
    """`check_refused(arguments..., says=[...])`: status 2, a message with every text, nothing written."""

    def check(*arguments: object, says: list[str], out: Path | None = None) -> None:
        before = _listing(tmp_path)
        result = run_cli(*arguments, "--out", out or tmp_path / "out")
        assert result.status == 2, result
        assert "Traceback" not in result.stderr
        for text in says:
            assert text in result.stderr, result.stderr
        assert _listing(tmp_path) == before

    return check


@pytest.fixture
def tiny_disk() -> Callable:
    """Runs the command with a 64 KiB file system mounted at a folder, and prints what it left there."""
    script = (
        "mount -t tmpfs -o size=64k tmpfs {disk} && {python} -m lora_eval {arguments}; status=$?; "
        "echo LEFT; find {disk} -type f; exit $status"
    )

    def run(disk: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        disk.mkdir()
        text = script.format(disk=disk, python=sys.executable, arguments=shlex.join(arguments))
        return subprocess.run(
            ["unshare", "-rm", "sh", "-c", text], capture_output=True, text=True, timeout=300
        )

    return run


def _listing(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()
    }


def test_missing_model_folder(check_refused: Callable, recipe: Path, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    check_refused("train", "--recipe", recipe, "--base", missing, says=["nowhere"])
    check_refused("compare", "--base", missing, "--suite", "pocket", says=["nowhere"])
    check_refused("export", "merge", "--base", missing, "--adapter", missing, says=["nowhere"])


def test_empty_model_folder(check_refused: Callable, recipe: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    check_refused("train", "--recipe", recipe, "--base", empty, says=["empty", "config.json"])
    check_refused("compare", "--base", empty, "--suite", "pocket", says=["empty", "config.json"])


def test_adapter_for_another_base(
    check_refused: Callable, tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    other = tmp_path / "wider"
    save_tiny_llama(other, hidden_size=128, intermediate_size=192)
    check_refused(
        "compare", "--base", other, "--adapter", tiny_adapter, "--suite", "pocket", says=["128", "64"]
    )
    check_refused("export", "merge", "--base", other, "--adapter", tiny_adapter, says=["128", "64"])


def test_adapter_without_weights(
    check_refused: Callable, tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    hollow = tmp_path / "hollow"
    shutil.copytree(tiny_adapter, hollow)
    (hollow / "adapter_model.safetensors").unlink()
    arguments = ("--base", tiny_llama, "--adapter", hollow)
    check_refused("compare", *arguments, "--suite", "pocket", says=["adapter_model.safetensors"])
    check_refused("export", "merge", *arguments, says=["adapter_model.safetensors"])


def test_unknown_recipe_key(check_refused: Callable, recipe: Path, tiny_llama: Path) -> None:
    recipe.write_text(RECIPE.replace("lora_alpha", "lora_alfa").replace("max_steps", "max_stepz"), "utf-8")
    says = ["tiny.yaml", "lora.lora_alfa", "did you mean 'lora_alpha'", "training.max_stepz"]
    check_refused("train", "--recipe", recipe, "--base", tiny_llama, says=says)


def test_recipe_that_does_not_exist(check_refused: Callable, tiny_llama: Path) -> None:
    says = ["No recipe named 'qlora-lama3-8b'", "Did you mean 'qlora-llama3-8b'?"]
    check_refused("train", "--recipe", "qlora-lama3-8b", "--base", tiny_llama, says=says)
    check_refused("train", "--recipe", "./none.yaml", "--base", tiny_llama, says=["none.yaml"])


def test_broken_json_line(check_refused: Callable, recipe: Path, tiny_llama: Path) -> None:
    data = recipe.parent / "data.jsonl"
    data.write_text(json.dumps(ROW) + "\n" + '{"messages": [\n' + json.dumps(ROW) + "\n", "utf-8")
    check_refused("train", "--recipe", recipe, "--base", tiny_llama, says=["data.jsonl", "line 2"])


def test_empty_data(check_refused: Callable, recipe: Path, tiny_llama: Path) -> None:
    (recipe.parent / "data.jsonl").write_text("", "utf-8")
    check_refused("train", "--recipe", recipe, "--base", tiny_llama, says=["data.jsonl"])


def test_no_assistant_turn(check_refused: Callable, recipe: Path, tiny_llama: Path) -> None:
    row = {"messages": [{"role": "user", "content": "Hi"}]}
    (recipe.parent / "data.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    check_refused("train", "--recipe", recipe, "--base", tiny_llama, says=["data.jsonl", "assistant"])


def test_tokenizer_without_chat_template(check_refused: Callable, recipe: Path, tmp_path: Path) -> None:
    base = tmp_path / "untemplated"
    save_tiny_llama(base)
    for path in base.glob("*.jinja"):
        path.unlink()
    save_tiny_tokenizer(base, chat_template=None)
    check_refused("train", "--recipe", recipe, "--base", base, says=["chat template"])


def test_unknown_task(check_refused: Callable, tiny_llama: Path) -> None:
    check_refused("compare", "--base", tiny_llama, "--tasks", "hellaswagg", says=["hellaswagg", "hellaswag"])


def test_data_set_that_is_not_on_this_machine(check_refused: Callable, tiny_llama: Path) -> None:
    check_refused("compare", "--base", tiny_llama, "--tasks", "gsm8k", says=["gsm8k", "openai/gsm8k"])


def test_output_folder_not_empty(
    check_refused: Callable, recipe: Path, tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    out = tmp_path / "full"
    out.mkdir()
    (out / "thesis.txt").write_text("do not lose me", "utf-8")
    check_refused("train", "--recipe", recipe, "--base", tiny_llama, says=["full", "not empty"], out=out)
    check_refused("compare", "--base", tiny_llama, "--suite", "pocket", says=["full", "not empty"], out=out)
    arguments = ("--base", tiny_llama, "--adapter", tiny_adapter)
    check_refused("export", "merge", *arguments, says=["full", "not empty"], out=out)


def test_limit_zero(check_refused: Callable, tiny_llama: Path) -> None:
    check_refused("compare", "--base", tiny_llama, "--suite", "pocket", "--limit", 0, says=["--limit", "0"])


@pytest.mark.parametrize("command", ["train", "compare", "merge"])
def test_no_disk_space(
    command: str,
    recipe: Path,
    tiny_llama: Path,
    tiny_adapter: Path,
    tmp_path: Path,
    tiny_disk: Callable,
) -> None:
    out = tmp_path / "disk" / "out"
    arms = ["--base", str(tiny_llama), "--adapter", str(tiny_adapter)]
    arguments = {
        "train": ["train", "--recipe", str(recipe), "--base", str(tiny_llama), "chat_template=qwen2.5"],
        "compare": ["compare", *arms, "--suite", "pocket", "--limit", "2"],
        "merge": ["export", "merge", *arms],
    }[command]
    result = tiny_disk(tmp_path / "disk", [*arguments, "--out", str(out)])
    assert result.returncode == 2, result
    assert "Traceback" not in result.stderr
    assert "space" in result.stderr
    assert not result.stdout.split("LEFT")[1].strip()


def test_unknown_engine(check_refused: Callable, tiny_llama: Path, tiny_adapter: Path) -> None:
    arms = ("--base", tiny_llama, "--adapter", tiny_adapter, "--suite", "pocket")
    check_refused("compare", *arms, "--engine", "vlm", says=["No engine named 'vlm'", "transformers"])
