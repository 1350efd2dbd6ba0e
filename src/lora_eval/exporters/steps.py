"""An export's place in the lineage: the variants before it, the step that made it, its fingerprint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_eval.fingerprint import fingerprint_folder
from lora_eval.models import package_versions, read_lineage, write_lineage
from lora_eval.protocols import ExportRequest
from lora_eval.records import Lineage, Step, Variant, VariantKind
from lora_eval.registry import own_version


def lineage_of(base: Path, adapter: Path | None) -> Lineage:
    """Return the lineage of what is exported: the stored one, else what can be said from the folders."""
    stored = read_lineage(adapter or base)
    if stored is not None:
        return stored
    variants = [Variant(kind="base", path=str(base), fingerprint=fingerprint_folder(base))]
    if adapter is not None:
        given = fingerprint_folder(adapter)
        parent = variants[0].fingerprint
        variants.append(Variant(kind="adapter", path=str(adapter), fingerprint=given, parent=parent))
    return Lineage(variants=tuple(variants))


def extend(
    lineage: Lineage, request: ExportRequest, *, kind: VariantKind, arguments: dict[str, Any], seconds: float
) -> Lineage:
    """Store and return the lineage of the finished folder `request.out`."""
    source = request.adapter or request.base
    parent = fingerprint_folder(source)
    inputs = {"base" if request.adapter else "model": fingerprint_folder(request.base)}
    if request.adapter:
        inputs["adapter"] = parent
    name = {"merged": "merge", "adapter": "lora"}.get(kind, kind)
    made = Variant(
        kind=kind,
        path=str(request.out),
        fingerprint=fingerprint_folder(request.out),
        parent=parent,
        made_by=f"lora-eval export {name}",
    )
    step = Step(
        tool=f"lora-eval export {name}",
        version=own_version(),
        arguments=arguments,
        inputs=inputs,
        wall_seconds=round(seconds, 3),
    )
    extended = lineage.model_copy(
        update={
            "variants": (*lineage.variants, made),
            "steps": (*lineage.steps, step),
            "packages": package_versions(),
        }
    )
    write_lineage(request.out, extended)
    return extended
