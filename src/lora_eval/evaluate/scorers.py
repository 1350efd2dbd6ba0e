"""Which engine answers for a model: the one asked for, or lm-eval's own path where that one is not right for
it; behind the store of results, with the answers of earlier arms as drafts.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

from lora_eval.engines.store import ResultStore
from lora_eval.engines.stored import StorableEngine, StoredEngine
from lora_eval.models import Resident, package_versions
from lora_eval.protocols import Engine
from lora_eval.records import Variant
from lora_eval.registry import get

# Whose version may change the digits of an answer.
_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "optimum", "gptqmodel")


class Scorers:
    """Opens the engines of one comparison. `notes` is what the report must say: a fall-back, a lost store."""

    def __init__(self, name: str, batch_tokens: int | None, store: ResultStore | None) -> None:
        self._name = name
        self._batch_tokens = batch_tokens
        self._store = store
        self._drafts: dict[bytes, tuple[int, ...]] = {}
        self._fallbacks: dict[str, None] = {}
        self._opened: tuple[Resident, Any] | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided so far."""
        return (*self._fallbacks, *(self._store.notes if self._store else ()))

    def open(self, resident: Resident) -> Any:
        """Return the engine for a model, opened once; it neither drafts nor remembers."""
        if self._opened is None or self._opened[0] is not resident:
            self._opened = (resident, self._open(resident))
        engine = self._opened[1]
        if hasattr(engine, "drafts"):
            engine.drafts = None
        return engine

    def open_stored(
        self, resident: Resident, variants: Mapping[str, Variant], quantization: dict[str, Any] | None
    ) -> Engine:
        """Return the engine for these arms of a model, with drafts, behind the store."""
        engine: Engine = self.open(resident)
        if hasattr(engine, "drafts"):
            engine.drafts = self._drafts
        if self._store is None or not isinstance(engine, StorableEngine):
            return engine
        identities = {name: identity(resident, each, quantization) for name, each in variants.items()}
        return StoredEngine(engine, self._store, identities)

    def close(self) -> None:
        """Forget the engine and its model: the next one needs the memory."""
        self._opened = None
        gc.collect()

    def _open(self, resident: Resident) -> Any:
        engine = get("engine", self._name)(resident, batch_tokens=self._batch_tokens)
        reason = getattr(engine, "fallback_reason", None)
        if reason is None:
            return engine
        from lora_eval.suites.reference import covered

        arms = ", ".join(resident.arms)
        self._fallbacks[f"{arms}: lm-eval's own path is used, for the engine '{self._name}' is not right for "
                        f"this model ({reason})"] = None  # fmt: skip
        return covered(engine)


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
