"""`merge`: the adapter added to the weights it was trained on, tensor by tensor, without loading the model.

An adapter trained under NF4 belongs to the dequantized NF4 weights. Added to the original 16-bit weights, or
merged by PEFT into Linear4bit (which quantizes again), it gives another model: 70 times the KL of the noise
floor in our measurement. So each layer that training quantized goes through bitsandbytes' quantization and
back, the change scaling * (B @ A) is added in float32, and the sum is rounded once.

`base`: the same without an adapter. It is what an adapter must be served on that is not merged.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from lora_eval.errors import InputError, ModelError
from lora_eval.exporters.assemble import Assembled, Assembler, Precision
from lora_eval.exporters.audit import check_audit
from lora_eval.exporters.base_files import BaseFiles, open_base
from lora_eval.exporters.calibration import RECIPE
from lora_eval.exporters.carry import (
    carry_config,
    carry_files,
    carry_rest,
    carry_tokenizer,
    check_vocabulary,
    licence_of,
    pack_templates,
    suit_server,
)
from lora_eval.exporters.combine import combined_request, read_combination
from lora_eval.exporters.file_work import FileWork, file_work
from lora_eval.exporters.lora import Adapter
from lora_eval.exporters.plan import Plan, make_plan
from lora_eval.exporters.steps import extend, lineage_of
from lora_eval.exporters.weights import dtype_code
from lora_eval.fingerprint import fingerprint_folder
from lora_eval.models import NF4, read_lineage
from lora_eval.models.locate import vocabulary_size
from lora_eval.models.trained_base import seen_in_training
from lora_eval.protocols import ExportRequest
from lora_eval.records import Lineage, MergeAudit, TrainedBase
from lora_eval.schema import load_json, write_record

AUDIT = "audit.json"
DTYPES = ("bfloat16", "float16", "float32")
SERVERS = ("transformers", "vllm", "sglang", "tgi")
_QUANTIZED = ("nf4", "fp4", "none")


class MergeExporter:
    """Base and adapter become one 16 or 32 bit model, the same as the one that was measured."""

    name = "merge"
    kind = "merged"
    options = ("onto", "dtype", "quantize", "server", "others", "weights", "combine", "density", "seed")

    def export(self, request: ExportRequest) -> Lineage:
        """Write the merged model; returns its lineage (see `Exporter.export`).

        Raises:
            ModelError: base or adapter cannot be merged right.
            CheckFailed: the merge changes nothing.
        """
        started = time.perf_counter()
        if request.adapter is None:
            raise InputError("export merge: needs the adapter to merge; give --adapter DIR")
        others = [Path(path) for path in request.options.get("others") or ()]
        combination = read_combination(request.options, len(others) + 1)
        if others:
            lineage = lineage_of(request.base, request.adapter)
            request, lineage = combined_request(request, others, combination, lineage)
        else:
            lineage = _known(request)
        return _merge(request, lineage, started)


class BaseExporter:
    """The base as training saw it: every layer that was quantized with its dequantized values."""

    name = "base"
    kind = "base"
    options = ("dtype", "quantize", "server")

    def export(self, request: ExportRequest) -> Lineage:
        """Write the model; returns its lineage (see `Exporter.export`).

        Raises:
            ModelError: the base cannot be read, or nothing says how it was quantized.
        """
        started = time.perf_counter()
        lineage = _known(request)
        trained = _quantization(request, lineage)
        if not trained:
            raise ModelError(
                f"{request.adapter or request.base}: nothing says how the base was quantized in training; "
                "give --adapter with its lineage.json, or --quantize nf4"
            )
        with file_work() as files:
            base = _opened(request, trained, files)
            seen = seen_in_training(request.adapter, trained) if request.adapter else None
            precision = Precision(_output_dtype(request, base), lineage.base_dtype, None, trained, seen)
            plan = make_plan(base, None)
            done = Assembler(base, None, plan, precision, request.out, request.progress).run(files)
            _carry(request, base, plan, precision, [request.base])
        _check_lineage(request, lineage, fingerprint_folder(request.base))
        arguments = {
            "dtype": precision.output,
            "base_dtype": lineage.base_dtype,
            "layers_quantized": done.quantized,
            "layers_as_trained": done.as_trained,
            "quantization": trained,
            "notes": [*plan.notes, *_width_notes(base), *_seen_notes(seen, done)],
        }
        only = ExportRequest(request.base, None, request.out)
        kept = lineage_of(request.base, None)
        seconds = time.perf_counter() - started
        return extend(kept, only, kind="base", arguments=arguments, seconds=seconds)


def _known(request: ExportRequest) -> Lineage:
    """Return the stored lineage, or an empty one: digests of the files are computed during the merge."""
    return read_lineage(request.adapter or request.base) or Lineage(variants=())


def _merge(request: ExportRequest, lineage: Lineage, started: float) -> Lineage:
    folder = request.adapter or request.base
    adapter = Adapter(folder)
    onto, trained = _target(request, lineage, adapter)
    with file_work() as files:
        base = _opened(request, trained if onto == "trained" else None, files)
        precision = Precision(
            output=_output_dtype(request, base),
            loaded=lineage.base_dtype if onto == "trained" else None,
            whole=lineage.base_dtype,
            quantization=trained if onto == "trained" else None,
            seen=seen_in_training(folder, trained) if onto == "trained" else None,
        )
        plan = make_plan(base, adapter)
        done = Assembler(base, adapter, plan, precision, request.out, request.progress).run(files)
        said = _unknown_notes(request, lineage) + _carry(
            request, base, plan, precision, [folder, request.base]
        )
    _check_lineage(request, lineage, fingerprint_folder(request.base))
    audit = MergeAudit(
        onto=onto,
        dtype=precision.output,
        tensors=tuple(done.rows),
        quantized=done.quantized,
        as_trained=done.as_trained,
        untouched=done.untouched,
        notes=(*plan.notes, *_width_notes(base), *_seen_notes(precision.seen, done)),
    )
    audit = check_audit(audit.model_copy(update={"notes": (*audit.notes, *said)}))
    write_record(request.out / AUDIT, audit)
    arguments = _summary(audit) | {"quantization": trained, "licence": licence_of(request.base)}
    lineage = lineage if lineage.variants else lineage_of(request.base, request.adapter)
    if trained:
        lineage = lineage.model_copy(update={"quantization": trained})
    return extend(lineage, request, kind="merged", arguments=arguments, seconds=time.perf_counter() - started)


def _opened(request: ExportRequest, quantization: dict[str, Any] | None, files: FileWork) -> BaseFiles:
    """Return what the base's files hold. Importing what that takes needs seconds: a digest begins before."""
    first = min(request.base.glob("*.safetensors"), default=None)
    if first is not None:
        files.read(first)
    return open_base(request.base, quantization)


def _check_lineage(request: ExportRequest, lineage: Lineage, given: str) -> None:
    """Equal shapes do not make it the same base: where the lineage names one by fingerprint, that counts."""
    bases = [variant for variant in lineage.variants if variant.kind == "base"]
    trained = bases[-1].fingerprint if bases else None
    if request.adapter is not None and trained is not None and trained != given:
        raise ModelError(
            f"{request.adapter}: was trained on '{lineage.base_model or bases[-1].path}' ({trained[:19]}), "
            f"but the base given is {request.base} ({given[:19]}); give the base it was trained on"
        )


def _target(
    request: ExportRequest, lineage: Lineage, adapter: Adapter
) -> tuple[Literal["trained", "original"], dict[str, Any] | None]:
    """Return which base to merge into, and how training quantized it."""
    trained = _quantization(request, lineage)
    asked = request.options.get("onto") or ("trained" if trained else "original")
    if asked not in ("trained", "original"):
        raise InputError(f"--onto {asked}: expected 'trained' or 'original'")
    if asked == "trained" and not trained and lineage.base_dtype is None:
        raise ModelError(
            f"{adapter.folder}: no lineage.json says how the base was quantized in training; give "
            "--quantize nf4, or --onto original for an adapter trained on the 16-bit base"
        )
    return ("original" if asked == "original" else "trained"), trained


def _quantization(request: ExportRequest, lineage: Lineage) -> dict[str, Any] | None:
    """Return the training's `BitsAndBytesConfig` arguments: as given, as the lineage says, or None."""
    given = request.options.get("quantize")
    if given is None:
        return lineage.quantization or None
    if given == "none":
        return None
    if given in ("nf4", "fp4"):
        return NF4 | {"bnb_4bit_quant_type": given}
    if not Path(given).is_file():
        raise InputError(
            f"--quantize {given}: expected one of {', '.join(_QUANTIZED)}, or a JSON file with the arguments "
            "of BitsAndBytesConfig"
        )
    data = load_json(Path(given))
    if not isinstance(data, dict):
        raise InputError(
            f"--quantize {given}: expected a JSON object with the arguments of BitsAndBytesConfig"
        )
    return {key: value for key, value in data.items() if key != "quant_method" and not key.startswith("_")}


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


def _carry(
    request: ExportRequest, base: BaseFiles, plan: Plan, precision: Precision, sources: list[Path]
) -> tuple[str, ...]:
    """Write everything beside the weights; the adapter's tokenizer and settings are newer than the base's."""
    server = request.options.get("server")
    if server not in (None, *SERVERS):
        raise InputError(f"--server {server}: expected one of {', '.join(SERVERS)}")
    out = request.out
    carry_config(request.base, out, precision.output, plan.config.changed())
    carry_tokenizer(sources, out)
    pack_templates(out, server)
    suit_server(out, server)
    carry_rest(sources, out)
    carry_files(sources[0], out, (RECIPE,))
    return check_vocabulary(out, plan.config.vocab_size or vocabulary_size(base.config))


def _seen_notes(seen: TrainedBase | None, done: Assembled) -> list[str]:
    """Say where the values are not those that training's layers held; `verify` measures what that costs."""
    if seen is None or not done.different:
        return []
    count = len(done.same) + len(done.different)
    return [
        f"{len(done.different)} of {count} quantized layers ({done.different[0]} first) do not hold in every "
        f"bit what they held in training (on: {seen.device}); verify measures the difference"
    ]


def _unknown_notes(request: ExportRequest, lineage: Lineage) -> tuple[str, ...]:
    """Say that nothing says how the base was quantized in training, where the user does not either."""
    if lineage.quantization or lineage.base_dtype or request.options.keys() & {"onto", "quantize"}:
        return ()
    return (
        "no lineage.json beside the adapter says how the base was quantized in training; merged into the "
        "base as it is stored. For a QLoRA adapter that is another model than the trained one: give "
        "--quantize nf4 (or --onto original, if it was trained so)",
    )


def _width_notes(base: BaseFiles) -> list[str]:
    """Say where this processor's kernels would measure another model than the trained one."""
    odd = [layer.module for layer in base.layers.values() if layer.quantized and layer.shape[1] % 64]
    if not odd:
        return []
    return [
        f"{len(odd)} quantized layers have rows that do not end with a block of 64 ({odd[0]} first): on a "
        "CPU with AVX512 bitsandbytes 0.50.2 may compute them with the scales of wrong blocks; this holds "
        "the values that its GPU code gives"
    ]


def _summary(audit: MergeAudit) -> dict[str, Any]:
    changed = [tensor.changed for tensor in audit.tensors]
    return {
        "onto": audit.onto,
        "dtype": audit.dtype,
        "layers_changed": sum(1 for share in changed if share),
        "layers_quantized": audit.quantized,
        "layers_as_trained": audit.as_trained,
        "mean_share_of_elements_changed": sum(changed) / len(changed),
        "audit": AUDIT,
        "notes": list(audit.notes),
    }
