"""`transformers serve`: a whole model, by the same library that measured it.

It takes texts and the fields of OpenAI's that it knows, and refuses others (422); a PEFT folder it cannot
open, log-probabilities it leaves out (measured with 5.23). So it is for trying a merged model where there is
no vLLM, and no arm of a comparison.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_eval.engines.http_client import KEY
from lora_eval.errors import InputError
from lora_eval.extras import require
from lora_eval.models.locate import read_config
from lora_eval.serve.start import Start
from lora_eval.servers.commands import command_line

_OURS = ("--host", "--port", "--dtype")
_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class WholeModel:
    """A model folder that `transformers serve` serves under `name`; `more` are arguments of its own.

    `adapters` and `allow_load` are what it does not have: `check` says so.
    """

    model: Path
    name: str = "model"
    adapters: Mapping[str, Path] = field(default_factory=dict)
    host: str = "127.0.0.1"
    dtype: str = "auto"
    allow_load: bool = False
    more: tuple[str, ...] = ()

    title = "transformers serve"
    ready = "/health"

    @property
    def names(self) -> tuple[str, ...]:
        """The one name."""
        return (self.name,)

    def check(self) -> None:
        """Raise InputError for adapters, a name or arguments that it does not take, MissingExtraError where
        it is not installed.
        """
        if self.adapters:
            commands = (merge_command(path, self.model, name) for name, path in self.adapters.items())
            raise InputError(
                "transformers serve takes whole models, no adapters; merge them and serve each with --model: "
                + "; ".join(commands)
            )
        if self.allow_load:
            raise InputError("--allow-load is about adapters, which transformers serve does not have")
        parts = Path(self.name).parts
        if "@" in self.name or not parts or Path(self.name).is_absolute() or ".." in parts:
            raise InputError(f"'{self.name}': transformers serve takes no such name; give --model NAME=DIR")
        for argument in self.more:
            if argument.partition("=")[0] in _OURS:
                raise InputError(f"{argument}: is set by lora-eval; leave it out")
        for module in ("fastapi", "uvicorn", "openai"):
            require(module, "serve")

    def start(self, port: int, scratch: Path) -> Start:
        """Return its command. It names a model by the place it was given, so it is given a link with the
        name, from the folder that the link lies in.
        """
        link = scratch / self.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(self.model.resolve(), target_is_directory=True)
        arguments = [sys.executable, "-m", "transformers.cli.transformers", "serve", self.name]
        arguments += ["--dtype", self.dtype, "--host", self.host, "--port", str(port), *self.more]
        return Start(arguments, {"HF_HUB_OFFLINE": "1"} | dict(os.environ), scratch)

    def first_request(self, name: str, ids: Sequence[int], text: str) -> Mapping[str, Any]:
        """Return a completion of the text: it takes no token ids."""
        return {"model": name, "prompt": text, "max_tokens": 2, "temperature": 0.0}

    def notes(self) -> tuple[str, ...]:
        """Say what it does not do."""
        said = ["transformers serve gives no log-probabilities: smoke checks its texts, compare refuses it"]
        said += [f"it asks nobody for the key in ${KEY}"] if os.environ.get(KEY) else []
        return tuple(said)


def merge_command(adapter: Path, base: Path | str, name: str) -> str:
    """Return the command that makes a whole model of an adapter."""
    return command_line("export merge", base=base, adapter=adapter, out=f"{name}-merged")


def check_whole(folder: Path, name: str) -> None:
    """Raise InputError, with the command that merges it, where the folder is an adapter's."""
    if (folder / _CONFIG).is_file() and not (folder / "config.json").is_file():
        base = read_config(folder, _CONFIG).get("base_model_name_or_path") or "BASE"
        raise InputError(
            f"{folder}: is an adapter, and transformers serve refuses those; merge it: "
            f"{merge_command(folder, base, name)}"
        )
