"""How many processes a launcher started, and which one this is."""

from __future__ import annotations

import os
from collections.abc import Mapping

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
