"""Which noise floors a verification needs, and which of them sets the limits."""

from __future__ import annotations

from typing import Literal

from lora_eval.fingerprint import fingerprint_data
from lora_eval.models import Resident
from lora_eval.models.locate import read_config
from lora_eval.records.verification import StoredFloor
from lora_eval.verify.arithmetic import convert, floor_dtype, quantize_like, read_grid
from lora_eval.verify.arms import ArmPath
from lora_eval.verify.checks import check_files
from lora_eval.verify.packed import PACKED
from lora_eval.verify.reference import Reference

Expected = Literal["equal", "near"]


def find_floors(
    asked: Reference, candidate: ArmPath, expected: Expected
) -> tuple[StoredFloor | None, dict[str, StoredFloor]]:
    """Return the floor that sets the limits, measured before the candidate is looked at, and the others.

    A model that must be equal: the larger of two arithmetics, other batches and another precision. A
    quantized one: the reference's weights rounded to the candidate's grid.
    """
    batched = asked.floor("batches", "the same arm, one sequence at a time", lambda resident: resident,
                          alone=True)  # fmt: skip
    if expected == "near":
        return _grid_floor(asked, candidate), {batched.words: batched}
    dtype = floor_dtype(asked.header.dtype, candidate.stored_dtype)

    def change(resident: Resident) -> Resident:
        convert(resident, dtype)
        return resident

    words = f"the reference's own weights computed in {dtype} instead of {asked.header.dtype}"
    rounded = asked.floor(dtype, words, change)
    larger = max((rounded, batched), key=lambda floor: max(d.mean_kl for d in floor.measured.values()))
    return larger, {floor.words: floor for floor in (rounded, batched) if floor is not larger}


def _grid_floor(asked: Reference, candidate: ArmPath) -> StoredFloor | None:
    config = read_config(candidate.path, "config.json").get("quantization_config") or {}
    grid = read_grid(config)
    names = [name for tensors in check_files(candidate.path).values() for name in tensors]
    layers = {name.removesuffix(end) for name in names for end in PACKED if name.endswith(end)}
    if grid is None or not layers:
        return None
    dtype = candidate.stored_dtype
    which = fingerprint_data(sorted(layers)).removeprefix("sha256:")[:12]
    return asked.floor(
        f"{grid.name}-{dtype}-{which}",
        f"the reference's own weights rounded to the nearest value ({grid.words})",
        lambda resident: quantize_like(resident, asked.arm.name, grid, layers, dtype),
    )
