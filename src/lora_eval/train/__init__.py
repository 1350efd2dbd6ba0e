"""Train an adapter: a recipe, a base and conversations become a verified adapter folder.

Runs as `lora-eval train`, and with the same arguments under a launcher as
`accelerate launch --config_file FILE -m lora_eval.train`. `plan` reads and checks everything that was given,
`rows` makes token ids and says which train, `trainer` builds TRL's SFTTrainer and closes its traps, `folder`
and `checkpoints` keep what is on disk whole, `reload` proves the saved adapter, `stage` is the order of all.
The home of trl. Names are resolved on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_eval.train.plan import resolve_base
    from lora_eval.train.stage import TrainResult, train

_HOMES = {"TrainResult": "stage", "resolve_base": "plan", "train": "stage"}

__all__ = ["TrainResult", "resolve_base", "train"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
