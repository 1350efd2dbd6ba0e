"""What a merge did to one tensor, measured on its values piece by piece; and what makes a merge wrong."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

from lora_eval.errors import CheckFailed
from lora_eval.exporters.pieces import scratch
from lora_eval.records.export import MergeAudit, TensorAudit

_LOST = 0.5  # a change of which rounding kept less than half is not the adapter that was measured
_SEEN = 2.0**-22  # of the base's norm: a smaller change the sum in float32 (24 bits) cannot show


@dataclass(slots=True)
class Sums:
    """Sums over the elements of one tensor, in float64; those of its pieces add up.

    `delta` is LoRA's change, `added` what was found in the sum before rounding, `stored` the change after it.
    """

    delta: float = 0.0  # <delta, delta>
    added_delta: float = 0.0  # <added, delta>
    added: float = 0.0  # <whole change, whole change>
    stored_added: float = 0.0  # <stored, whole change>
    base: float = 0.0  # <base, base>
    error: float = 0.0  # <quantized - original, quantized - original>
    original: float = 0.0  # <original, original>
    differing: int = 0
    elements: int = 0

    @property
    def finite(self) -> bool:
        """Whether every stored value is a finite number: an infinite one makes the sums so."""
        return isfinite(self.stored_added)

    def __iadd__(self, other: Sums) -> Sums:
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))
        return self


def piece_sums(
    *,
    base: Any,
    summed: Any,
    merged: Any,
    delta: Any | None = None,
    unscaled: Any | None = None,
    original: Any | None = None,
    rounded: Any | None = None,
) -> Sums:
    """Return the sums of one piece; arguments of one shape, in float32 but `merged` (output dtype).

    `base` is what the change was added to, `summed` the sum before rounding,
    `delta` LoRA's change, `unscaled` the sum without DoRA's factors, `original` the base before quantization;
    `rounded` the base in the output dtype, where it is at hand.
    """
    import torch

    flat = base.view(-1)
    sums = Sums(elements=base.numel(), base=float(torch.dot(flat, flat)))
    shape = tuple(base.shape)
    change = torch.sub(summed, base, out=scratch("change", shape)).view(-1)
    sums.added = float(torch.dot(change, change))
    if delta is not None:
        added = change if unscaled is None else torch.sub(unscaled, base).view(-1)
        sums.delta = float(torch.dot(delta.view(-1), delta.view(-1)))
        sums.added_delta = float(torch.dot(added, delta.view(-1)))
    stored = scratch("stored", shape).copy_(merged).sub_(base)
    sums.stored_added = float(torch.dot(stored.view(-1), change))
    if sums.added:
        sums.differing = _differing(merged, base.to(merged.dtype) if rounded is None else rounded)
    if original is not None:
        wide = scratch("stored", shape).copy_(original).view(-1)
        error = torch.sub(flat, wide, out=change)
        sums.error = float(torch.dot(error, error))
        sums.original = float(torch.dot(wide, wide))
    return sums


def _differing(found: Any, other: Any) -> int:
    """Count elements whose bits differ; numpy compares 16-bit integers in a tenth of torch's time."""
    import numpy
    import torch

    bits = torch.int16 if found.element_size() == 2 else torch.int32
    different = scratch("different", tuple(found.shape), torch.bool).numpy()
    numpy.not_equal(found.view(bits).numpy(), other.view(bits).numpy(), out=different)
    return int(numpy.count_nonzero(different))


def tensor_audit(sums: Sums, *, quantized: bool, **named: Any) -> TensorAudit:
    """Return the audit of one tensor from the sums over all its pieces; `named` as in `TensorAudit`."""
    seen = sums.delta**0.5 > _SEEN * sums.base**0.5
    return TensorAudit(
        applied=round(sums.added_delta / sums.delta) if seen else None,
        kept=sums.stored_added / sums.added if sums.added else None,
        changed=sums.differing / max(sums.elements, 1),
        relative_change=(sums.delta or sums.added) ** 0.5 / max(sums.base**0.5, 1e-30),
        quantization_error=(sums.error**0.5 / max(sums.original**0.5, 1e-30)) if quantized else None,
        **named,
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
    largest = max((tensor.relative_change for tensor in audit.tensors), default=0.0)
    if largest <= _SEEN or not any(tensor.changed for tensor in audit.tensors):
        raise CheckFailed(
            "the merge changes nothing: "
            + ("every B @ A of the adapter is zero, so it was never trained" if not largest else
               f"every change is lost in rounding to {audit.dtype}; use --dtype float32"
               if largest > _SEEN else
               f"the largest change is {largest:.1g} of its weight's norm, which float32 cannot hold, so it "
               "was hardly trained")
        )  # fmt: skip
    return audit.model_copy(update={"notes": (*audit.notes, *_notes(audit))})


def _notes(audit: MergeAudit) -> list[str]:
    empty = [tensor for tensor in audit.tensors if not tensor.relative_change]
    lost = [tensor for tensor in audit.tensors if tensor.kept is not None and tensor.kept < _LOST]
    notes = []
    if empty:
        notes.append(f"the change is 0 in {len(empty)} of {len(audit.tensors)} layers: they are the base's")
    if lost:
        least = min(lost, key=lambda tensor: tensor.kept or 0.0)
        notes.append(
            f"rounding to {audit.dtype} lost more than half of the change in {len(lost)} of "
            f"{len(audit.tensors)} layers (most in {least.module}: {least.kept:.0%} kept); --dtype float32 "
            "keeps it"
        )
    return notes
