"""The reference's own weights in another arithmetic: how much rounding alone changes its answers."""

from __future__ import annotations

from lora_eval.models import Resident
from lora_eval.models.dense import dequantize_nf4


def floor_dtype(reference: str, candidate: str) -> str:
    """Return the dtype of the noise floor: the candidate's where it differs from the reference's, else the
    next wider one.
    """
    if candidate != reference:
        return candidate
    return "float64" if reference == "float32" else "float32"


def convert(resident: Resident, dtype: str) -> None:
    """From now on the arm computes in `dtype` with dense weights; adapters stay unmerged. In place."""
    import torch

    dequantize_nf4(resident.model)
    for parameter in resident.model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
