"""The arithmetic of a merge, on rows of one weight: the change in float32, the sum, and one rounding.

LoRA: W + scaling * (B @ A) (arXiv 2106.09685, section 4.1). DoRA: each row of that scaled to the length in
the magnitude vector (arXiv 2402.09353, equation 5), with PEFT's own norm. The results are those of PEFT's
merge in float32 in every bit (tested), rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_eval.errors import ModelError
from lora_eval.exporters.audit import Sums, piece_sums
from lora_eval.exporters.lora import Adapter, Edit, Lora
from lora_eval.exporters.pieces import row_ranges, scratch
from lora_eval.exporters.round_trip import Quantized


@dataclass(frozen=True, slots=True)
class Start:
    """A weight before the adapter, (out, in): stored, or as the quantized layer used it."""

    stored: Any
    quantized: Quantized | None = None
    dtype: Any = None  # what training loaded it in; None: as stored
    transposed: bool = False  # the layer holds it as (in, out)

    @property
    def step(self) -> int:
        """Rows are to be asked for in multiples of this."""
        return 1 if self.quantized is None else self.quantized.step

    def rows(self, first: int, end: int) -> tuple[Any, Any | None]:
        """Return the rows (maybe in scratch memory), and the unquantized ones where they were quantized."""
        piece = self.stored[first:end]
        if self.dtype is not None:
            piece = piece.to(self.dtype)
        return (piece, None) if self.quantized is None else (self.quantized.rows(first, end), piece)


class Change:
    """What an adapter does to one weight; its matrices in memory, in float32."""

    def __init__(self, adapter: Adapter, edit: Edit, start: Start) -> None:
        self._lora = edit.lora
        self._factors: Any = None
        self._magnitude: Any = None
        self._rows: dict[int, Any] = {}
        self._bias = None if edit.bias is None else adapter.tensor(edit.bias[0]).float() * edit.bias[1]
        if edit.tokens is not None:
            values = adapter.tensor(edit.tokens[0])
            self._rows = dict(zip(edit.tokens[1], values, strict=True))
        if edit.lora is not None:
            self._a, self._b = (adapter.tensor(name).float() for name in (edit.lora.a, edit.lora.b))
            if edit.lora.magnitude is not None:
                self._magnitude = adapter.tensor(edit.lora.magnitude).float().view(-1)
                if edit.lora.embedding:
                    self._factors = self._magnitude / self._column_norms(start)

    def delta(self, first: int, end: int) -> Any:
        """Return rows of scaling * (B @ A), (out, in) as `nn.Linear` stores it."""
        import torch

        if self._bias is not None:
            return self._bias[first:end]
        lora = _needed(self._lora)
        if lora.embedding:
            return torch.mm(self._b, self._a[:, first:end]).T.mul(lora.scaling).contiguous()
        found = scratch("delta", (end - first, self._a.shape[1]))
        return torch.mm(self._b[first:end], self._a, out=found).mul_(lora.scaling)

    def apply(self, start: Start, first: int, end: int, dtype: Any) -> tuple[Any, Sums]:
        """Return the merged rows in the output dtype (in scratch memory), and what happened to them."""
        import torch

        piece, original = start.rows(first, end)
        base = scratch("base", tuple(piece.shape)).copy_(piece)
        delta, unscaled = None, None
        summed = trained = self._with_rows(base, piece.dtype, first, end)
        if self._lora is not None or self._bias is not None:
            delta = self.delta(first, end)
            summed = torch.add(trained, delta, out=scratch("summed", tuple(base.shape)))
            unscaled = None if trained is base else base + delta
        if self._magnitude is not None:
            unscaled = summed
            summed = self._row_factors(trained, delta, first, end, start.transposed) * unscaled
        merged = summed
        if dtype != summed.dtype:  # the only rounding
            merged = scratch(f"merged {dtype}", tuple(summed.shape), dtype).copy_(summed)
        sums = piece_sums(
            base=base,
            summed=summed,
            merged=merged,
            delta=delta,
            unscaled=unscaled,
            original=original,
            rounded=piece if piece.dtype == dtype else None,
        )
        return merged, sums

    def _with_rows(self, base: Any, dtype: Any, first: int, end: int) -> Any:
        """Return the rows with those of trained tokens among them, as PEFT sets them in: rounded to the
        embedding's dtype (`base` itself where none is among them).
        """
        inside = [row for row in self._rows if first <= row < end]
        if not inside:
            return base
        changed = base.clone()
        for row in inside:
            changed[row - first] = self._rows[row].to(dtype).float()
        return changed

    def _row_factors(self, base: Any, delta: Any, first: int, end: int, transposed: bool) -> Any:
        from peft.tuners.lora.dora import DoraLinearLayer

        if self._factors is not None:
            return self._factors.view(1, -1)
        if transposed:  # sums run in another order over the layer's own layout
            base = base.T.contiguous().T
        norm = DoraLinearLayer(fan_in_fan_out=False).get_weight_norm(base, delta, scaling=1)
        return (self._magnitude[first:end] / norm).view(-1, 1)

    def _column_norms(self, start: Start) -> Any:
        """Return the norm of each column of an embedding with its change: its rows are tokens."""
        import torch
        from peft.tuners.lora.dora import DoraEmbeddingLayer

        lora = _needed(self._lora)
        layer, (tokens, hidden) = DoraEmbeddingLayer(fan_in_fan_out=True), start.stored.shape
        weight, _ = start.rows(0, tokens)
        return torch.cat([
            layer.get_weight_norm(
                weight[:, first:end].float(),
                torch.mm(self._b[first:end], self._a).mul_(lora.scaling),
                scaling=1,
            )
            for first, end in row_ranges(hidden, tokens)
        ])  # fmt: skip


def check_finite(name: str, piece: Any) -> None:
    """Raise ModelError where a value is infinite or no number in the output dtype."""
    import torch

    if not torch.isfinite(piece).all():
        dtype = str(piece.dtype).removeprefix("torch.")
        raise ModelError(
            f"{name}: the model to be written holds values here that are not finite in {dtype}"
            + (
                "; use --dtype bfloat16 or float32"
                if dtype == "float16"
                else ", so the base or the adapter does; copy both again, or look at the training's loss"
            )
        )


def _needed(lora: Lora | None) -> Lora:
    if lora is None:
        raise ValueError("a change without LoRA has no delta")
    return lora
