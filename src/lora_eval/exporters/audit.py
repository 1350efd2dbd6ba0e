"""What a merge did to one tensor, measured on its values; and what makes a merge wrong."""

from __future__ import annotations

from typing import Any

from lora_eval.errors import CheckFailed
from lora_eval.exporters.lora import Target
from lora_eval.records.export import MergeAudit, TensorAudit

_LOST = 0.5  # a change of which rounding kept less than half is not the adapter that was measured


def audit_tensor(
    name: str, target: Target, *, base: Any, delta: Any, summed: Any, merged: Any, original: Any | None
) -> TensorAudit:
    """Return the audit of one merged weight; all arguments shaped (out, in).

    `base` is what the change was added to, `summed` the sum before rounding, `merged` the stored result,
    `original` the base before quantization (None where it was not quantized).
    """
    start = base.float()
    size = float(delta.norm())
    return TensorAudit(
        tensor=name,
        module=target.module,
        rank=target.rank,
        scaling=target.scaling,
        applied=round(_projection(summed - start, delta)) if size else None,
        kept=_projection(merged.float() - start, delta) if size else None,
        changed=float((merged != start.to(merged.dtype)).float().mean()),
        relative_change=size / max(float(start.norm()), 1e-30),
        quantization_error=None if original is None else _relative_error(start, original.float()),
    )


def check_audit(audit: MergeAudit) -> MergeAudit:
    """Return the audit with its warnings as notes.

    Raises:
        CheckFailed: a change was not applied exactly once, or nothing changed at all.
    """
    wrong = [tensor for tensor in audit.tensors if tensor.applied not in (None, 1)]
    if wrong:
        listed = ", ".join(f"{tensor.module} ({tensor.applied} times)" for tensor in wrong[:5])
        raise CheckFailed(f"the adapter's change must be applied exactly once to each layer: {listed}")
    if not any(tensor.changed for tensor in audit.tensors):
        zero = all(tensor.applied is None for tensor in audit.tensors)
        raise CheckFailed(
            "the merge changes nothing: "
            + ("every B @ A of the adapter is zero, so it was never trained" if zero else
               f"every change is lost in rounding to {audit.dtype}; use --dtype float32")
        )  # fmt: skip
    return audit.model_copy(update={"notes": tuple(_notes(audit))})


def _notes(audit: MergeAudit) -> list[str]:
    empty = [tensor for tensor in audit.tensors if tensor.applied is None]
    lost = [tensor for tensor in audit.tensors if tensor.kept is not None and tensor.kept < _LOST]
    notes = []
    if empty:
        notes.append(f"B @ A is 0 in {len(empty)} of {len(audit.tensors)} layers: they are the base's")
    if lost:
        least = min(lost, key=lambda tensor: tensor.kept or 0.0)
        notes.append(
            f"rounding to {audit.dtype} lost more than half of the change in {len(lost)} of "
            f"{len(audit.tensors)} layers (most in {least.module}: {least.kept:.0%} kept); --dtype float32 "
            "keeps it"
        )
    return notes


def _projection(found: Any, delta: Any) -> float:
    """How many times `delta` is in `found`: <found, delta> / <delta, delta>, in float64 sums."""
    import torch

    top = torch.sum(found * delta, dtype=torch.float64)
    return float(top / torch.sum(delta * delta, dtype=torch.float64))


def _relative_error(found: Any, original: Any) -> float:
    return float((found - original).norm()) / max(float(original.norm()), 1e-30)
