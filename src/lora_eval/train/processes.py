"""How many processes there are, which one this is, and whether it is what the launcher was asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lora_eval.errors import InputError
from lora_eval.resources import resource_folder

_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return this process's number; the first one, 0, is the one that writes and speaks."""
    return int(environment.get("RANK", "0"))


def world_size(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many processes the launcher started (1 without a launcher)."""
    return int(environment.get("WORLD_SIZE", "1"))


def check_launch(environment: Mapping[str, str] = os.environ) -> None:
    """Raise InputError where `accelerate launch` was asked for several processes and started one.

    `--cpu --num_processes 2`, and a file with `use_cpu: true` or `MULTI_CPU`, do that without an error
    (accelerate 1.15, `prepare_simple_launcher_cmd_env`): the only trace is that it gives the one process an
    address to meet the others at, and no WORLD_SIZE.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in environment
    alone = "WORLD_SIZE" not in environment and not any(name in environment for name in _MPI_SIZES)
    if launched and alone and "MASTER_PORT" in environment:
        file = resource_folder("templates") / "accelerate" / "cpu-two.yaml"
        raise InputError(
            "accelerate launch was asked for several processes and started one: with --cpu or `use_cpu: "
            f"true` it needs an MPI host file; use --config_file {file} (MULTI_GPU without GPUs gives gloo "
            "processes), or unset MASTER_ADDR and MASTER_PORT if one process is wanted"
        )


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
