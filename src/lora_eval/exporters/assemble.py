"""Write the merged shards: one tensor after another, in pieces that several threads compute and write."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from lora_eval.exporters.audit import Sums, piece_sums, tensor_audit
from lora_eval.exporters.base_files import BaseFiles
from lora_eval.exporters.changes import Change, Start, check_finite
from lora_eval.exporters.drift import drifted
from lora_eval.exporters.file_work import FileWork
from lora_eval.exporters.lora import Adapter, Edit
from lora_eval.exporters.pieces import Workers, open_workers, row_ranges
from lora_eval.exporters.plan import Output, Plan
from lora_eval.exporters.round_trip import RoundTrip
from lora_eval.exporters.weights import INDEX, Writer, dtype_code, open_writer, read_metadata, write_index
from lora_eval.models.locate import read_config
from lora_eval.models.mergeable import DRIFTING
from lora_eval.protocols import Progress
from lora_eval.records import TensorAudit, TrainedBase


@dataclass(frozen=True, slots=True)
class Precision:
    """`output` is the stored dtype; `loaded` what training loaded the base in (None: as stored); `whole` the
    dtype in which weights that the adapter holds whole were used; `quantization` that of the training, and
    `seen` what its quantized layers held, where it kept that.
    """

    output: str
    loaded: str | None = None
    whole: str | None = None
    quantization: dict[str, Any] | None = None
    seen: TrainedBase | None = None


@dataclass(slots=True)
class Assembled:
    """What was done: one audit for each changed tensor, and how many others were quantized or only copied.

    `same` and `different` are the quantized layers whose values are, or are not, in every bit those that
    training kept checksums of.
    """

    rows: list[TensorAudit] = field(default_factory=list)
    quantized: int = 0
    untouched: int = 0
    same: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    @property
    def as_trained(self) -> int | None:
        """How many layers are the same; None where none was compared."""
        return len(self.same) if self.same or self.different else None


class Assembler:
    """Goes through the base's files once and writes the same layout."""

    def __init__(
        self, base: BaseFiles, adapter: Adapter | None, plan: Plan, precision: Precision, out: Path,
        progress: Progress,
    ) -> None:  # fmt: skip
        import torch

        self._base, self._adapter, self._plan, self._out, self._progress = base, adapter, plan, out, progress
        self._trip = RoundTrip(precision.quantization, precision.seen) if precision.quantization else None
        self._dtype = getattr(torch, precision.output)
        self._loaded = getattr(torch, precision.loaded) if precision.loaded else None
        self._whole = getattr(torch, precision.whole) if precision.whole else None
        self._code = dtype_code(precision.output)
        self._done = Assembled()
        self._total = sum(len(outputs) for outputs in plan.shards.values())
        self._written = 0

    def run(self, files: FileWork) -> Assembled:
        """Write all shards and the index. `files` computes the digest of each of the base's shards meanwhile,
        so that it is read from the disk once.
        """
        import torch

        weight_map: dict[str, str] = {}
        size = 0
        with open_workers() as workers, torch.no_grad():
            for shard, outputs in self._plan.shards.items():
                files.read(self._base.folder / shard)
                codes = {
                    o.name: (o.info, self._code if o.info.is_floating else o.info.dtype) for o in outputs
                }
                metadata = read_metadata(self._base.folder / shard)
                with open_writer(self._out / shard, codes, metadata) as writer:
                    for output in outputs:
                        self._write(output, writer, workers)
                weight_map |= dict.fromkeys(codes, shard)
                size += sum(info.n_bytes(code) for info, code in codes.values())
        if (self._base.folder / INDEX).is_file():
            kept = read_config(self._base.folder, INDEX).get("metadata") or {}
            write_index(self._out, weight_map, size, kept)
        return self._done

    def _write(self, output: Output, writer: Writer, workers: Workers) -> None:
        stored = self._base.tensor(output.stored)
        if not output.info.is_floating or not stored.dim():
            writer.write(output.name, stored.to(self._dtype) if output.info.is_floating else stored)
            self._done.untouched += 1
        elif output.edit.whole and output.edit == Edit(whole=output.edit.whole):
            self._write_whole(output, stored, writer, workers)
        elif output.edit != Edit() or (self._trip and output.layer and output.layer.quantized):
            self._write_changed(output, stored, writer, workers)
        else:
            self._write_plain(output, stored, writer, workers)
        self._written += 1
        self._progress("merging", self._written, self._total)

    def _write_plain(self, output: Output, stored: Any, writer: Writer, workers: Workers) -> None:
        """Copy a tensor, in the output dtype."""
        self._done.untouched += 1
        steps = [dtype for dtype in (self._loaded, self._dtype) if dtype is not None]
        width = _width(stored)

        def work(first: int, end: int) -> None:
            piece = stored[first:end]
            for dtype in steps:
                piece = piece.to(dtype)
            if any(dtype != stored.dtype for dtype in steps):
                check_finite(output.name, piece)
            writer.write(output.name, piece, first * width)

        workers.all(work, row_ranges(len(stored), width))

    def _write_whole(self, output: Output, stored: Any, writer: Writer, workers: Workers) -> None:
        """Write a weight that the adapter holds whole; rows that the base lacks were added in training."""
        new = self._need().tensor(str(output.edit.whole))
        used = self._whole or stored.dtype
        common, width = min(len(stored), len(new)), _width(new)

        def work(first: int, end: int) -> Sums:
            value = new[first:end].to(used)
            merged = value.to(self._dtype)
            check_finite(output.name, merged)
            writer.write(output.name, merged, first * width)
            rows = max(min(end, common) - first, 0)
            base = stored[first : first + rows].float()
            return piece_sums(base=base, summed=value[:rows].float(), merged=merged[:rows])

        self._keep_audit(output, workers.ordered(work, row_ranges(len(new), width)))

    def _write_changed(self, output: Output, stored: Any, writer: Writer, workers: Workers) -> None:
        """Write a weight that was quantized, or that the adapter adds to, or both."""
        start = self._start(output, stored, workers)
        ranges = row_ranges(len(start.stored), _width(start.stored), start.step)
        place = _Place(output, writer, start.stored.shape, self._dtype)
        if output.edit == Edit():
            self._done.untouched += 1

            def copied(first: int, end: int) -> None:
                piece = start.rows(first, end)[0].to(self._dtype)
                check_finite(output.name, piece)
                place.put(piece, first)

            workers.all(copied, ranges)
        else:
            change = Change(self._need(), output.edit, start)

            def changed(first: int, end: int) -> Sums:
                merged, sums = change.apply(start, first, end, self._dtype)
                if not sums.finite:
                    check_finite(output.name, merged)
                place.put(merged, first)
                return sums

            self._keep_audit(output, workers.ordered(changed, ranges), start.quantized is not None)
        place.close()
        seen = self._trip.seen.get(output.module) if self._trip else None
        if seen is not None and start.quantized is not None:
            same = str(start.quantized.checksum) == seen.checksum
            (self._done.same if same else self._done.different).append(output.module)

    def _start(self, output: Output, stored: Any, workers: Workers) -> Start:
        """Return the weight before the adapter, as training used it."""
        layer, edit = output.layer, output.edit
        if edit.whole is not None:
            stored = self._need().tensor(edit.whole).to(self._whole or stored.dtype)
        if _transposed(output):
            stored = stored.T.contiguous()
        if edit.whole is not None:
            return Start(stored)
        quantized = self._trip is not None and layer is not None and layer.quantized
        self._done.quantized += quantized
        adapter = self._adapter
        if edit.lora and layer and adapter is not None and adapter.initial in DRIFTING:
            weight = drifted(
                stored if self._loaded is None else stored.to(self._loaded),
                layer,
                edit.lora,
                initial=adapter.initial,
                use_rslora=bool(adapter.config.get("use_rslora")),
                quantization=self._trip.config if self._trip and quantized else None,
                folder=adapter.folder,
            )
            return Start(weight)
        if self._trip is not None and quantized:
            weight = stored if self._loaded is None else stored.to(self._loaded)
            return Start(weight, self._trip.prepare(weight, workers.ordered, output.module))
        return Start(stored, dtype=self._loaded, transposed=_transposed(output))

    def _keep_audit(self, output: Output, found: Iterable[Sums], quantized: bool = False) -> None:
        """Keep the audit of what the pieces say, which are written when all were asked for."""
        total = Sums()
        for sums in found:
            total += sums
        edit = output.edit
        how = "dora" if edit.lora and edit.lora.magnitude else "lora" if edit.lora or edit.bias else "tokens"
        self._done.rows.append(
            tensor_audit(
                total,
                quantized=quantized,
                tensor=output.name,
                module=output.module,
                how="whole" if edit == Edit(whole=edit.whole) else how,
                rank=edit.lora.rank if edit.lora else None,
                scaling=edit.lora.scaling if edit.lora else None,
            )
        )

    def _need(self) -> Adapter:
        if self._adapter is None:
            raise ValueError("an edit without an adapter")
        return self._adapter


class _Place:
    """Where the pieces of one tensor go: into the file, or, where that holds (in, out), first together."""

    def __init__(self, output: Output, writer: Writer, shape: tuple[int, ...], dtype: Any) -> None:
        import torch

        self._name, self._writer = output.name, writer
        self._width = prod(shape[1:])
        self._whole = torch.empty(shape, dtype=dtype) if _transposed(output) else None

    def put(self, piece: Any, first: int) -> None:
        """Take rows from `first` on; they may lie in scratch memory."""
        if self._whole is None:
            self._writer.write(self._name, piece, first * self._width)
        else:
            self._whole[first : first + len(piece)] = piece

    def close(self) -> None:
        """Write what was put together."""
        if self._whole is not None:
            self._writer.write(self._name, self._whole.T.contiguous())


def _transposed(output: Output) -> bool:
    """Whether the file holds this weight as (in, out)."""
    return output.layer is not None and output.layer.transposed


def _width(tensor: Any) -> int:
    return tensor[0].numel() if len(tensor) else 1
