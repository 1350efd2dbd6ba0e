"""lm-eval's own command line knows our model, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lm_eval", *arguments],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_the_command_gives_the_figures_of_the_hf_model(
    tasks: Path, tiny_llama: Path, tiny_adapter: Path, tmp_path: Path, reference: Callable[..., Any]
) -> None:
    done = _run(
        *("--model", "lora_eval", "--model_args", f"pretrained={tiny_llama},peft={tiny_adapter}"),
        *("--tasks", "t_choice", "--include_path", str(tasks), "--output_path", str(tmp_path)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = tmp_path.rglob("results_*.json")
    found = json.loads(file.read_text("utf-8"))
    theirs = reference("tuned", ["t_choice"], tasks)["results"]["t_choice"]
    for metric in ("acc,none", "acc_norm,none"):
        assert found["results"]["t_choice"][metric] == theirs[metric]
    assert found["config"]["model"] == "lora_eval"


def test_a_process_without_lm_eval_does_not_import_it() -> None:
    code = "import torch, sys; assert not {'lm_eval', 'lora_eval.suites.bridge'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_torch_can_be_imported_where_lm_eval_is_broken(tmp_path: Path) -> None:
    (tmp_path / "lm_eval").mkdir()
    (tmp_path / "lm_eval" / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-c", "import lm_eval, torch; print(torch.ones(1).item())"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "1.0\n"
    assert "does not know the model 'lora_eval'" in done.stderr


@pytest.mark.parametrize(
    "announced",
    ["import torch", "import lora_eval.suites.bridge", "registry.register(name, target=entry)"],
)
def test_the_model_is_found_however_it_was_announced(announced: str) -> None:
    code = f"""
from importlib.metadata import EntryPoint
import lm_eval.models
from lm_eval.api.registry import get_model, model_registry as registry
name = "lora_eval"
entry = EntryPoint(name, "lora_eval.suites.bridge:LoraEvalLM", "lm_eval.models")
{announced}
assert get_model(name).__name__ == "LoraEvalLM"
import lora_eval.suites.bridge
assert get_model(name) is lora_eval.suites.bridge.LoraEvalLM
assert get_model("hf").__name__ == "HFLM"
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
