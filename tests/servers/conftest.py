"""Adapters of every kind for `tiny_llama`, made by PEFT, and one way to ask a server about them."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_eval.protocols import DeployRequest
from lora_eval.records import Finding
from lora_eval.registry import get
from tests.conftest import save_tiny_adapter

SERVERS = ("vllm", "sglang", "tgi", "lorax")
QKV = ["q_proj", "k_proj", "v_proj"]


@pytest.fixture(scope="session")
def make_adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_adapter(use_dora=True)` saves an adapter with these `LoraConfig` values, once for each set."""
    made: dict[str, Path] = {}

    def make(base: Path | None = None, **config: Any) -> Path:
        key = f"{base} {sorted(config.items())}"
        if key not in made:
            folder = tmp_path_factory.mktemp("kinds") / "adapter"
            values = {"target_modules": QKV} | config
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT's own, on tied embeddings
                save_tiny_adapter(base or tiny_llama, folder, **values)
            made[key] = folder
        return made[key]

    return make


def ask(
    server: str, base: Path, adapters: dict[str, Path] | Path | None = None, **options: Any
) -> list[Finding]:
    """Return what a server makes of adapters (one alone is called `tuned`) on a base called `base`."""
    named = {"tuned": adapters} if isinstance(adapters, Path) else adapters or {}
    return get("server", server).lint(DeployRequest(base, "base", named, options))


def of_rule(findings: list[Finding], rule: str) -> list[Finding]:
    return [finding for finding in findings if finding.rule == rule]


def edit_json(folder: Path, name: str, **changes: Any) -> None:
    """Set keys of a JSON file; None takes a key away."""
    data = json.loads((folder / name).read_text("utf-8")) | changes
    kept = {key: value for key, value in data.items() if value is not None or key not in changes}
    (folder / name).write_text(json.dumps(kept), "utf-8")


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """`copied(folder)` is a copy that a test may change."""
    made = iter(range(100))
    return lambda folder: Path(shutil.copytree(folder, tmp_path / f"{folder.name}-{next(made)}"))
