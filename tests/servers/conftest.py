"""Adapters of every kind for `tiny_llama`, made by PEFT, and one way to ask a server about them."""

from __future__ import annotations

import json
import shlex
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_eval.deploy import deploy
from lora_eval.protocols import DeployRequest
from lora_eval.records import Finding
from lora_eval.registry import get
from tests.conftest import save_tiny_adapter, save_tiny_llama

CASES = {
    "vllm": ("vllm", 2, {}),
    "vllm-cpu": ("vllm", 2, {"device": "cpu", "max_model_len": 512}),
    "vllm-two-gpus": ("vllm", 1, {"tensor_parallel": 2, "targets": ("compose", "kubernetes", "command")}),
    "vllm-model": ("vllm", 0, {"port": 9000}),
    "vllm-two-machines": ("vllm", 1, {"tensor_parallel": 2, "nodes": 2}),
    "sglang-router": ("sglang", 1, {"replicas": 2, "port": 8000}),
    "sglang": ("sglang", 2, {}),
    "tgi": ("tgi", 2, {"port": 8080}),
    "lorax": ("lorax", 1, {"port": 8080}),
}
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


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A tiny Llama that is stored in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("served") / "llama"
    save_tiny_llama(folder)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def arms(base, make_adapter) -> dict[str, Path]:
    """Two adapters of other ranks."""
    return {"support": make_adapter(base=base, r=4), "legal": make_adapter(base=base, r=12, seed=3)}


@pytest.fixture(scope="session")
def rendered(base, arms, tmp_path_factory):
    """`rendered("vllm")` is the folder of a case, and its record."""
    made = {}

    def make(case):
        if case not in made:
            server, count, options = CASES[case]
            out = tmp_path_factory.mktemp("deployments") / case
            chosen = dict(list(arms.items())[:count])
            made[case] = out, deploy(server, DeployRequest(base, "llama", chosen, options), out)
        return made[case]

    return make


def words_of(out: Path) -> list[str]:
    """The command that serve.sh would run, as a shell splits it."""
    text = (out / "serve.sh").read_text("utf-8").replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("exec ")]
    words = shlex.split(line)[1:]
    assert words[-1] == "$@"
    return words[:-1]


def option(words: list[str], name: str) -> list[str]:
    """The values of an option in a command."""
    place = words.index(name) + 1
    end = next((i for i in range(place, len(words)) if words[i].startswith("--")), len(words))
    return words[place:end]
