"""`merge`: the adapter added to the weights it was trained on, tensor by tensor, without loading the model.

An adapter trained under NF4 belongs to the dequantized NF4 weights. Added to the original 16-bit weights, or
merged by PEFT into Linear4bit (which quantizes again), it gives another model: 70 times the KL of the noise
floor in our measurement. So each layer that training quantized goes through bitsandbytes' own quantize and
dequantize, the change scaling * (B @ A) is added in float32, and the sum is rounded once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lora_eval.errors import InputError, ModelError
from lora_eval.exporters.audit import audit_tensor, check_audit
from lora_eval.exporters.base_files import BaseFiles, Layer, open_base
from lora_eval.exporters.calibration import RECIPE
from lora_eval.exporters.carry import carry_config, carry_files, carry_rest, carry_tokenizer, check_vocabulary
from lora_eval.exporters.lora import Adapter, Target
from lora_eval.exporters.round_trip import RoundTrip
from lora_eval.exporters.steps import extend, lineage_of
from lora_eval.exporters.weights import TensorInfo, dtype_code, open_writer, write_index
from lora_eval.models import NF4, check_adapter
from lora_eval.protocols import ExportRequest
from lora_eval.records import Lineage
from lora_eval.records.export import MergeAudit, TensorAudit
from lora_eval.schema import write_record

AUDIT = "audit.json"
DTYPES = ("bfloat16", "float16", "float32")


class MergeExporter:
    """Base and adapter become one 16 or 32 bit model, the same as the one that was measured."""

    name = "merge"
    kind = "merged"
    options = ("onto", "dtype", "quantize")

    def export(self, request: ExportRequest) -> Lineage:
        """Write the merged model; returns its lineage (see `Exporter.export`).

        Raises:
            ModelError: base or adapter cannot be merged right.
            CheckFailed: the merge changes nothing.
        """
        started = time.perf_counter()
        if request.adapter is None:
            raise InputError("export merge: needs the adapter to merge; give --adapter DIR")
        check_adapter(request.adapter, request.base)
        adapter = Adapter(request.adapter)
        lineage = lineage_of(request.base, request.adapter)
        plan = _plan(request, lineage, adapter)
        if plan.quantization:
            lineage = lineage.model_copy(update={"quantization": plan.quantization})
        audit = _Merge(plan, request).run()
        write_record(request.out / AUDIT, audit)
        _carry(request, plan)
        arguments = _summary(audit) | {"quantization": plan.quantization}
        return extend(
            lineage,
            request,
            kind="merged",
            arguments=arguments,
            seconds=time.perf_counter() - started,
        )


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything that was decided before the first tensor is read."""

    base: BaseFiles
    adapter: Adapter
    onto: Literal["trained", "original"]
    quantization: dict[str, Any] | None
    loaded_dtype: str | None  # what training loaded the base in (None: as stored)
    dtype: str
    targets: dict[str, Target]  # by the tensor's name in the base's files


def _plan(request: ExportRequest, lineage: Lineage, adapter: Adapter) -> _Plan:
    trained = _quantization(request, lineage)
    asked = request.options.get("onto") or ("trained" if trained else "original")
    if asked not in ("trained", "original"):
        raise InputError(f"--onto {asked}: expected 'trained' or 'original'")
    onto: Literal["trained", "original"] = "original" if asked == "original" else "trained"
    if onto == "trained" and not trained and lineage.base_dtype is None:
        raise ModelError(
            f"{adapter.folder}: no lineage.json says how the base was quantized in training; give "
            "--quantize nf4, or --onto original for an adapter trained on the 16-bit base"
        )
    quantization = trained if onto == "trained" else None
    base = open_base(request.base, quantization)
    return _Plan(
        base=base,
        adapter=adapter,
        onto=onto,
        quantization=quantization,
        loaded_dtype=lineage.base_dtype if onto == "trained" else None,
        dtype=_output_dtype(request, base),
        targets=_match_targets(adapter, base),
    )


def _quantization(request: ExportRequest, lineage: Lineage) -> dict[str, Any] | None:
    given = request.options.get("quantize")
    if given not in (None, "nf4", "none"):
        raise InputError(f"--quantize {given}: expected 'nf4' or 'none'")
    if given == "none":
        return None
    return dict(NF4) if given == "nf4" else lineage.quantization or None


def _output_dtype(request: ExportRequest, base: BaseFiles) -> str:
    """The dtype asked for, else the one the base says it is stored in, else that of most of its tensors."""
    config = base.config
    dtype = request.options.get("dtype") or config.get("dtype") or config.get("torch_dtype")
    if dtype is None:
        codes = [info.dtype for tensors in base.shards.values() for info in tensors.values()]
        most = max(sorted(set(codes)), key=codes.count)
        dtype = next((name for name in DTYPES if dtype_code(name) == most), "bfloat16")
    if dtype not in DTYPES:
        raise InputError(f"dtype '{dtype}': expected one of {', '.join(DTYPES)}")
    return str(dtype)


def _check_copies(adapter: Adapter, base: BaseFiles) -> None:
    """PEFT stores embeddings whole beside LoRA on them; they must be the base's, else they were trained."""
    import torch
    from safetensors import safe_open

    places = {name: path for path, tensors in base.shards.items() for name in tensors}
    for module in adapter.copies:
        name = base.modules.get(module, f"{module}.weight")
        same = name in places
        if same:
            with safe_open(places[name], framework="pt") as file:
                same = torch.equal(file.get_tensor(name).float(), adapter.copy_of(module).float())
        if not same:
            raise ModelError(
                f"{adapter.path}: holds a whole weight for {module} that is not the base's: it was "
                "trained or resized; merging that is not supported yet"
            )


def _match_targets(adapter: Adapter, base: BaseFiles) -> dict[str, Target]:
    """Return the adapter's targets by the name of the tensor that each changes."""
    _check_copies(adapter, base)
    found: dict[str, Target] = {}
    for module, target in adapter.targets.items():
        if module in base.tied:
            raise ModelError(
                f"{adapter.folder}: changes {module}, whose weight the base shares with another layer (tied "
                "embeddings); merged, the change would act in both; merging that is not supported yet"
            )
        name = base.modules.get(module)
        if name is None:
            raise ModelError(
                f"{adapter.folder}: changes {module}, which is no linear layer with a weight in "
                f"{base.folder}; merging that is not supported yet"
            )
        if adapter.shape(target) != base.layers[name].shape:
            raise ModelError(
                f"{adapter.folder}: {module} is {list(adapter.shape(target))} in the adapter and "
                f"{list(base.layers[name].shape)} in the base {base.folder}"
            )
        found[name] = target
    return found


@dataclass
class _Merge:
    """Goes through the base's files once and writes the same layout."""

    plan: _Plan
    request: ExportRequest
    rows: list[TensorAudit] = field(default_factory=list)
    quantized: int = 0
    untouched: int = 0

    def run(self) -> MergeAudit:
        """Write all shards and the index; returns the checked audit."""
        plan, out = self.plan, self.request.out
        self._round_trip = RoundTrip(plan.quantization) if plan.quantization else None
        weight_map: dict[str, str] = {}
        size = 0
        for path, tensors in plan.base.shards.items():
            announced = {name: (info, self._code(info)) for name, info in tensors.items()}
            self._write_shard(path, out / path.name, announced)
            weight_map |= dict.fromkeys(tensors, path.name)
            size += sum(info.n_bytes(code) for info, code in announced.values())
        if len(plan.base.shards) > 1:
            write_index(out, weight_map, size)
        missing = set(plan.targets) - {row.tensor for row in self.rows}
        if missing:
            raise ModelError(f"{plan.base.folder}: no tensor for {', '.join(sorted(missing)[:5])}")
        return check_audit(
            MergeAudit(
                onto=plan.onto,
                dtype=plan.dtype,
                tensors=tuple(self.rows),
                quantized=self.quantized,
                untouched=self.untouched,
            )
        )

    def _code(self, info: TensorInfo) -> str:
        return dtype_code(self.plan.dtype) if info.is_floating else info.dtype

    def _write_shard(self, source: Path, out: Path, announced: dict[str, tuple[TensorInfo, str]]) -> None:
        from safetensors import safe_open

        total = sum(len(tensors) for tensors in self.plan.base.shards.values())
        with safe_open(source, framework="pt") as file, open_writer(out, announced) as writer:
            for name, (info, _) in announced.items():
                stored = file.get_tensor(name)
                writer.write(name, self._convert(name, stored) if info.is_floating else stored)
                done = len(self.rows) + self.untouched + (not info.is_floating)
                self.request.progress("merging", done, total)

    def _convert(self, name: str, stored: Any) -> Any:
        """Return the tensor as it is stored in the merged model."""
        import torch

        plan = self.plan
        dtype = getattr(torch, plan.dtype)
        if plan.loaded_dtype:
            stored = stored.to(getattr(torch, plan.loaded_dtype))
        layer, target = plan.base.layers.get(name), plan.targets.get(name)
        if layer is None or (target is None and not layer.quantized):
            self.untouched += 1
            return _finite(name, stored.to(dtype))
        return self._convert_layer(name, layer, target, stored)

    def _convert_layer(self, name: str, layer: Layer, target: Target | None, stored: Any) -> Any:
        import torch

        dtype = getattr(torch, self.plan.dtype)
        weight = stored.T.contiguous() if layer.transposed else stored  # (out, in)
        base, original = weight, None
        if layer.quantized and self._round_trip is not None:
            base, original = self._round_trip(weight), weight
            self.quantized += 1
        if target is None:
            merged = base.to(dtype)
            self.untouched += 1
        else:
            delta = self.plan.adapter.delta(target)  # (out, in)
            summed = base.float() + delta
            merged = summed.to(dtype)  # the only rounding
            row = audit_tensor(
                name, target, base=base, delta=delta, summed=summed, merged=merged, original=original
            )
            self.rows.append(row)
        return _finite(name, merged.T.contiguous() if layer.transposed else merged)


def _finite(name: str, tensor: Any) -> Any:
    import torch

    if not torch.isfinite(tensor).all():
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise ModelError(
            f"{name}: holds values that are not finite in {dtype}"
            + ("; use --dtype bfloat16 or float32" if dtype == "float16" else "")
        )
    return tensor


def _carry(request: ExportRequest, plan: _Plan) -> None:
    """Write everything beside the weights; the adapter's tokenizer and settings are newer than the base's."""
    sources = [folder for folder in (request.adapter, request.base) if folder is not None]
    carry_config(request.base, request.out, plan.dtype)
    carry_tokenizer(sources, request.out)
    carry_rest(sources, request.out)
    carry_files(sources[0], request.out, (RECIPE,))
    check_vocabulary(request.out, plan.base.config.get("vocab_size"))


def _summary(audit: MergeAudit) -> dict[str, Any]:
    changed = [tensor.changed for tensor in audit.tensors]
    return {
        "onto": audit.onto,
        "dtype": audit.dtype,
        "layers_changed": sum(1 for share in changed if share),
        "layers_quantized": audit.quantized,
        "mean_share_of_elements_changed": sum(changed) / len(changed),
        "audit": AUDIT,
        "notes": list(audit.notes),
    }
