"""Which engine answers for a model: the one asked for, or lm-eval's own path where that one is not right for
it; behind the store of results, with the answers of earlier arms as drafts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_eval.engines.http import HttpEngine, open_served
from lora_eval.engines.parallel import ALONE, Processes, parallel
from lora_eval.engines.store import ResultStore
from lora_eval.engines.stored import StorableEngine, StoredEngine
from lora_eval.errors import InputError
from lora_eval.evaluate.arms import Arms, FolderArm, ServedArm, choose_dtype
from lora_eval.models import (
    IDENTITY,
    Resident,
    open_adapter,
    open_folder,
    open_resident,
    package_versions,
)
from lora_eval.protocols import Engine, Progress
from lora_eval.records import Variant
from lora_eval.registry import get
from lora_eval.suites.reference import ReferenceEngine

# Whose version may change the digits of an answer.
_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "optimum", "gptqmodel", "compressed-tensors")


@dataclass(frozen=True, slots=True)
class Scorer:
    """An open engine with what a run's record must say about its model."""

    engine: Any
    notes: tuple[str, ...]

    @property
    def has_identity(self) -> bool:
        """Whether it serves the adapter that does nothing."""
        holder = getattr(self.engine, "resident", self.engine)
        return IDENTITY in getattr(holder, "every_arm", self.engine.arms)

    def close(self) -> None:
        """End what the engine started outside this process."""
        if hasattr(self.engine, "close"):
            self.engine.close()


@dataclass(slots=True)
class Scorers:
    """Opens the engines of one comparison; `options` go to an engine that opens paths, by its own names."""

    name: str
    progress: Progress
    batch_tokens: int | None = None
    store: ResultStore | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    processes: Processes = ALONE
    notes: tuple[str, ...] = ()
    _drafts: dict[bytes, tuple[int, ...]] = field(default_factory=dict)

    def shared(self, arms: Arms, quantization: dict[str, Any] | None) -> Scorer:
        """Return the engine of the base and the adapters that share it, with the identity control (of an
        engine that opens paths: where there are adapters).
        """
        dtype, adapters = choose_dtype(arms), arms.shared
        factory = get("engine", self.name)
        if opens_paths(factory) and arms.apart:
            raise InputError(
                f"--adapter {next(iter(arms.apart.values()))}: changes its base, which --engine "
                f"{self.name} cannot do; use the transformers engine, or merge it and give it as --arm"
            )
        if opens_paths(factory):
            return self._of_paths(factory, arms.base, adapters, base_name=arms.base_name, dtype=dtype,
                                  quantization=quantization, identity_control=bool(adapters))  # fmt: skip
        resident = open_resident(arms.base, adapters, base_name=arms.base_name, dtype=dtype,
                                 quantization=quantization, identity_control=True)  # fmt: skip
        return self._of_resident(factory, resident)

    def apart(self, arms: Arms, name: str, quantization: dict[str, Any] | None) -> Scorer:
        """Return the engine of an adapter on a copy of the base of its own, with one arm."""
        resident = open_adapter(arms.base, arms.adapters[name], name=name, dtype=choose_dtype(arms),
                                quantization=quantization)  # fmt: skip
        return self._of_resident(get("engine", self.name), resident)

    def folder(self, arm: FolderArm, dtype: str) -> Scorer:
        """Return the engine of a merged or quantized folder, with one arm."""
        factory = get("engine", self.name)
        if opens_paths(factory):
            return self._of_paths(factory, arm.path, base_name=arm.name, dtype=dtype)
        return self._of_resident(factory, open_folder(arm.path, name=arm.name, dtype=dtype))

    def served(self, arm: ServedArm, base: Path) -> Scorer:
        """Return the engine of a running server's model, with one arm; the base's tokenizer is its."""
        if self.processes.count > 1:
            raise InputError(f"--arm {arm.name}=served: one process asks a server; run it without a launcher")
        engine = open_served(arm.url, arm.model, base, name=arm.name, progress=self.progress)
        return Scorer(engine, engine.notes)

    def stored(
        self, scorer: Scorer, variants: Mapping[str, Variant], quantization: dict[str, Any] | None
    ) -> Engine:
        """Return the engine with drafts, behind the store. Controls get the one without: they would compare
        an answer with its copy.
        """
        engine: Engine = scorer.engine
        if hasattr(engine, "drafts"):
            engine.drafts = self._drafts
        if self.store is None or not isinstance(engine, StorableEngine):
            return parallel(engine, self.processes)
        if isinstance(engine, HttpEngine):
            identities = {name: {"fingerprint": each.fingerprint} for name, each in variants.items()}
        else:
            resident: Resident = engine.resident  # type: ignore[attr-defined]
            identities = {name: identity(resident, each, quantization) for name, each in variants.items()}
        return parallel(StoredEngine(engine, self.store, identities), self.processes)

    def _of_paths(self, factory: Any, *places: Any, **settings: Any) -> Scorer:
        if self.processes.count > 1:
            raise InputError(
                f"--engine {self.name} starts processes of its own: run it without a launcher, or the "
                "transformers engine with one"
            )
        engine = factory(
            *places, **settings, batch_tokens=self.batch_tokens, progress=self.progress, **self.options
        )
        return Scorer(engine, tuple(engine.notes))

    def _of_resident(self, factory: Any, resident: Resident) -> Scorer:
        engine = factory(resident, batch_tokens=self.batch_tokens)
        # Where one process falls back, all do: no arm's numbers come from two ways of computing.
        reasons = self.processes.together("probe", lambda: getattr(engine, "fallback_reason", None))
        reason = next((found for found in reasons if found is not None), None)
        if reason is not None:
            engine = ReferenceEngine(resident, fallback_reason=reason)
            arms = ", ".join(resident.arms)
            self.notes += (
                f"{arms}: lm-eval's own path is used, for the engine '{self.name}' is not right for this "
                f"model ({reason})",
            )
        return Scorer(engine, resident.notes)


def opens_paths(factory: Any) -> bool:
    """Whether an engine loads models itself, from their folders."""
    return getattr(factory, "opens", "resident") == "paths"


def identity(resident: Resident, variant: Variant, quantization: dict[str, Any] | None) -> dict[str, Any]:
    """Return what decides an arm's answers beside the request: weights, arithmetic, and who computes."""
    versions = package_versions()
    return {
        "kind": variant.kind,
        "fingerprint": variant.fingerprint,
        "parent": variant.parent if variant.kind == "adapter" else None,
        "quantization": quantization,
        "device": resident.device_name,
        "attention": resident.model.config._attn_implementation,
        "opened": list(resident.notes),
        "packages": {name: versions.get(name) for name in _PACKAGES},
    }
