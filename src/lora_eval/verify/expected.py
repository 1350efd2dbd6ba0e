"""What each tensor of a merged candidate should be, from the files of the base and of the adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_eval.exporters.base_files import Layer, open_base
from lora_eval.exporters.changes import Change, Start
from lora_eval.exporters.lora import Adapter, Edit
from lora_eval.exporters.round_trip import RoundTrip
from lora_eval.exporters.weights import TensorInfo, read_header
from lora_eval.models import read_lineage
from lora_eval.models.locate import weight_files
from lora_eval.models.mergeable import DRIFTING
from lora_eval.models.trained_base import seen_in_training


@dataclass(frozen=True, slots=True)
class Parts:
    """What a merged weight is the sum of, in float32 and shaped as in the file; None where there is no such
    thing. `base` is what the adapter was trained on, `original` the base before quantization, `delta` the
    adapter's change, and `again` the merged weight quantized once more.
    """

    base: Any
    original: Any = None
    delta: Any = None
    again: Any = None


@dataclass(frozen=True, slots=True)
class Expected:
    """One tensor as the exporter would write it, in the candidate's dtype; `parts` gives what it is the sum
    of (None: it is no sum).
    """

    tensor: Any
    parts: Callable[[], Parts] | None = None


class StoredTensors:
    """The tensors of a folder's safetensors files, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self.infos: dict[str, TensorInfo] = {}
        self._places: dict[str, Path] = {}
        for path in weight_files(folder):
            if path.suffix == ".safetensors":
                header = read_header(path)
                self.infos |= header
                self._places |= dict.fromkeys(header, path)

    def read(self, name: str) -> Any:
        """Return one tensor as it is stored."""
        from safetensors import safe_open

        with safe_open(self._places[name], framework="pt") as file:
            return file.get_tensor(name)


class SameTensors:
    """A reference without an adapter: every tensor is to be its own."""

    def __init__(self, folder: Path) -> None:
        self._stored = StoredTensors(folder)

    def names(self) -> Iterator[str]:
        """Every tensor of the reference."""
        yield from self._stored.infos

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._stored.infos[name].shape

    def expect(self, name: str, dtype: Any) -> Expected:
        """Return what the candidate's tensor should be in that dtype."""
        stored = self._stored.read(name)
        return Expected(stored.to(dtype) if stored.is_floating_point() else stored)


class MergedTensors:
    """A reference with an adapter: the sums that `export merge --onto trained` writes, by its own arithmetic.
    Without one: the base that `export base --dequantized` writes, where training loaded it in `loaded`.

    Raises:
        ModelError: the adapter or its base cannot be merged (see `export merge`).
    """

    def __init__(
        self,
        base: Path,
        adapter: Path | None,
        quantization: dict[str, Any] | None,
        loaded: str | None = None,
    ) -> None:
        self._files = open_base(base, quantization)
        self._stored = StoredTensors(base)
        self._adapter = Adapter(adapter) if adapter else None
        seen = seen_in_training(adapter, quantization) if adapter else None
        self._trip = RoundTrip(quantization, seen) if quantization else None
        lineage = read_lineage(adapter) if adapter else None
        self._loaded = lineage.base_dtype if lineage else loaded
        self._modules = {
            name: path.removesuffix(".weight")
            for path, name in self._files.parameters.items()
            if path.endswith(".weight")
        }
        self._paths = {name: path for path, name in self._files.parameters.items()}

    @property
    def can_tell(self) -> bool:
        """False where training began by changing the base by a rule of its own (PiSSA, OLoRA)."""
        return self._adapter is None or self._adapter.initial not in DRIFTING

    def names(self) -> Iterator[str]:
        """Every tensor of the base, but for embeddings that are shared and changed: whether they are still
        shared, and which of the two was changed, the exporter decides.
        """
        edits = self._adapter.edits if self._adapter else {}
        shared = set(self._files.tied) if any(module in edits for module in self._files.tied) else set()
        yield from (name for name in self._stored.infos if self._modules.get(name) not in shared)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape that the tensor should have: the base's, unless the adapter holds it whole."""
        whole = self._whole(name)
        return self._stored.infos[name].shape if whole is None else self._held().shape(whole)

    def expect(self, name: str, dtype: Any) -> Expected:
        """Return what the candidate's tensor should be in that dtype."""
        import torch

        whole = self._whole(name)
        stored = self._stored.read(name) if whole is None else self._held().tensor(whole)
        if not stored.is_floating_point():
            return Expected(stored)
        if self._loaded and whole is None:
            stored = stored.to(getattr(torch, self._loaded))
        module = self._modules.get(name, "")
        layer = self._files.layers.get(module)
        if layer is None:
            return Expected(stored.to(dtype))
        return self._layer(stored, layer, self._adapter.edits.get(module) if self._adapter else None, dtype)

    def _layer(self, stored: Any, layer: Layer, edit: Edit | None, dtype: Any) -> Expected:
        import torch

        weight = stored.T.contiguous() if layer.transposed else stored
        trip = self._trip if layer.quantized else None
        start = Start(weight, trip.prepare(weight, module=layer.module) if trip else None)
        lora = edit.lora if edit else None
        change = Change(self._held(), edit, start) if edit and (lora or edit.tokens) else None
        if change is not None:
            merged = change.apply(start, 0, len(weight), dtype)[0].clone()
        else:
            merged = start.rows(0, len(weight))[0].to(dtype, copy=True)

        def as_stored(tensor: Any, kind: Any = torch.float32) -> Any:
            # A copy: rows and deltas lie in scratch memory, which the next call writes over.
            return (tensor.T if layer.transposed else tensor).to(kind, copy=True).contiguous()

        def parts() -> Parts:
            base, original = start.rows(0, len(weight))
            delta = None
            if change is not None and lora is not None and not lora.magnitude:  # DoRA's is no multiple
                delta = as_stored(change.delta(0, len(weight)))
            return Parts(
                as_stored(base),
                None if original is None else as_stored(original),
                delta,
                None if trip is None else as_stored(trip(merged.to(weight.dtype))),
            )

        return Expected(as_stored(merged, dtype), parts)

    def _whole(self, name: str) -> str | None:
        """The adapter's tensor that takes the place of the base's, where there is one."""
        if self._adapter is None:
            return None
        edit = self._adapter.edits.get(self._modules.get(name, ""))
        if edit is not None and edit.whole is not None:
            return edit.whole
        return self._adapter.parameters.get(self._paths.get(name, ""))

    def _held(self) -> Adapter:
        assert self._adapter is not None
        return self._adapter
