"""Whether training runs in the processes that the launcher was asked for, and what they tell one another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lora_eval.errors import InputError
from lora_eval.models.processes import world_size


def check_started(trainer: Any, environment: Mapping[str, str] = os.environ) -> None:
    """Raise InputError where the trainer does not train with as many processes as the launcher started."""
    accelerator = trainer.accelerator
    asked, found = world_size(environment), accelerator.num_processes
    if found != asked:
        raise InputError(
            f"the launcher started {asked} processes, but the trainer runs with {found} "
            f"({accelerator.distributed_type.value}): the global batch would be {found}/{asked} of what was "
            "planned; set distributed_type in the accelerate file to MULTI_GPU (also for gloo on CPUs)"
        )
    if environment.get("ACCELERATE_USE_FSDP") == "true" and accelerator.distributed_type.value != "FSDP":
        raise InputError(
            f"FSDP was asked for, but the trainer runs as {accelerator.distributed_type.value}: on CPUs "
            "transformers falls back to DDP silently; use a machine with GPUs, or ddp.yaml"
        )


def from_first(value: Any) -> Any:
    """Return the first process's value in every process."""
    if world_size() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def wait_for_all() -> None:
    """Return when every process has come here."""
    if world_size() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
