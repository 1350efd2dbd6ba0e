"""Who is compared, on which weights: arms checked, the base's numbers chosen as in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_eval.errors import InputError
from lora_eval.fingerprint import fingerprint_folder
from lora_eval.models import NF4, check_adapter, needs_own_base, read_lineage, resolve_model
from lora_eval.models.lineage import trained_quantization
from lora_eval.records import Lineage, Variant, VariantKind

ORIGINAL = "base-16bit"


@dataclass(frozen=True, slots=True)
class FolderArm:
    """A model folder that is an arm of its own: merged or GPTQ weights."""

    name: str
    kind: VariantKind
    path: Path
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class ServedArm:
    """One model of a running server that is an arm of its own: `url` ends with `/v1`, `model` is its name."""

    name: str
    url: str
    model: str


@dataclass(frozen=True, slots=True)
class Arms:
    """Who is compared. `quantize` is `auto` (as the adapters were trained), `nf4` or `none`."""

    base: Path
    adapters: Mapping[str, Path] = field(default_factory=dict)
    others: Sequence[FolderArm] = ()
    served: Sequence[ServedArm] = ()
    base_name: str = "base"
    base_revision: str | None = None
    revisions: Mapping[str, str | None] = field(default_factory=dict)
    dtype: str = "auto"
    quantize: str = "auto"
    add_original: bool = False

    @property
    def shared(self) -> dict[str, Path]:
        """The adapters that share one copy of the base."""
        return {name: path for name, path in self.adapters.items() if not needs_own_base(path, self.base)}

    @property
    def apart(self) -> dict[str, Path]:
        """The adapters that change the base's own weights: each needs a copy of its own."""
        return {name: path for name, path in self.adapters.items() if needs_own_base(path, self.base)}

    @property
    def alone(self) -> tuple[str, ...]:
        """Names of the arms that share no base: folders, and models of running servers."""
        return (*(arm.name for arm in self.others), *(arm.name for arm in self.served))

    def check(self) -> None:
        """Raise InputError for a name given twice, and ModelError for what cannot be opened."""
        names = [self.base_name, *self.adapters, *self.alone]
        names += [ORIGINAL] if self.add_original else []
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"arm '{twice[0]}' is named twice; give each arm its own name with NAME=PATH")
        resolve_model(str(self.base))
        for adapter in self.adapters.values():
            check_adapter(adapter, self.base)
        for other in self.others:
            resolve_model(str(other.path))


def choose_quantization(arms: Arms) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Return the arguments of `BitsAndBytesConfig` for the resident base, and what the report must say.

    Raises:
        InputError: the adapters were trained on differently quantized bases, or a choice has no meaning.
    """
    trained = {name: trained_quantization(path) for name, path in arms.adapters.items()}
    if arms.quantize == "nf4":
        chosen = next((found for found in trained.values() if found), None) or dict(NF4)
    elif arms.quantize == "none":
        chosen = None
    else:
        chosen = next(iter(trained.values()), None)
        if any(found != chosen for found in trained.values()):
            kinds = ", ".join(f"{name}: {_kind(found)}" for name, found in trained.items())
            raise InputError(
                f"the adapters were trained on differently quantized bases ({kinds}); "
                "choose one for all with --quantize, or compare them one by one"
            )
    if arms.add_original and not chosen:
        raise InputError("--add-original: the base is not quantized, so it is the 16-bit original already")
    notes = [
        f"arm {name}: trained on a base with {_kind(found)}, measured on a base with {_kind(chosen)}"
        for name, found in trained.items()
        if found != chosen
    ]
    return chosen, tuple(notes)


def choose_dtype(arms: Arms) -> str:
    """Return the base's dtype: the one asked for, else the one that all adapters were trained on."""
    if arms.dtype != "auto":
        return arms.dtype
    lineages = [read_lineage(path) for path in arms.adapters.values()]
    trained = {lineage.base_dtype if lineage else None for lineage in lineages}
    return (trained.pop() or "auto") if len(trained) == 1 else "auto"


def shared_variants(arms: Arms) -> dict[str, Variant]:
    """Return base and adapters that share it as variants, by the name of their arm."""
    base = fingerprint_folder(arms.base)
    variants = {
        arms.base_name: Variant(
            kind="base", path=str(arms.base), revision=arms.base_revision, fingerprint=base
        )
    }
    return variants | {name: adapter_variant(arms, name, base) for name in arms.shared}


def adapter_variant(arms: Arms, name: str, base: str | None) -> Variant:
    """Return an adapter as a variant; `base` is the fingerprint of its base."""
    path = arms.adapters[name]
    return Variant(
        kind="adapter",
        path=str(path),
        revision=arms.revisions.get(name),
        fingerprint=fingerprint_folder(path),
        parent=base,
        made_by=_made_by(read_lineage(path)),
    )


def apart_notes(arms: Arms) -> tuple[str, ...]:
    """Say which adapters were measured on a copy of the base of their own, and why."""
    return tuple(
        f"arm {name}: its initialisation changes the base's own weights, and switching it off would not give "
        f"{arms.base_name} back; so each was loaded separately, one after the other"
        for name in arms.apart
    )


def folder_variant(arm: FolderArm) -> Variant:
    """Return a folder as a variant; its parent is what its lineage says."""
    lineage = read_lineage(arm.path)
    return Variant(
        kind=arm.kind,
        path=str(arm.path),
        revision=arm.revision,
        fingerprint=fingerprint_folder(arm.path),
        parent=lineage.variants[-1].parent if lineage else None,
        made_by=_made_by(lineage) if arm.kind != "base" else None,
    )


def original_arm(arms: Arms, quantization: dict[str, Any] | None) -> list[FolderArm]:
    """Return the unquantized base as an arm of its own, where that was asked for."""
    if not arms.add_original or not quantization:
        return []
    return [FolderArm(ORIGINAL, "base", arms.base, arms.base_revision)]


def _kind(quantization: dict[str, Any] | None) -> str:
    if not quantization:
        return "weights as stored"
    bits = "8-bit" if quantization.get("load_in_8bit") else "4-bit"
    return f"{bits} {quantization.get('bnb_4bit_quant_type', '')} weights".replace("  ", " ")


def _made_by(lineage: Lineage | None) -> str | None:
    return lineage.steps[-1].tool if lineage and lineage.steps else None
