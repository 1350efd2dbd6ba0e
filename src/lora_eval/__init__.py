"""lora-eval: is the adapter better than its base, what did it break, and is what ships what was measured?

Names are resolved on first use, so that importing the package imports no model library.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "ChatTemplate": "lora_eval.records",
    "Comparison": "lora_eval.records",
    "Engine": "lora_eval.protocols",
    "EvalSuite": "lora_eval.records",
    "Exporter": "lora_eval.protocols",
    "Lineage": "lora_eval.records",
    "LoraEvalError": "lora_eval.errors",
    "Recipe": "lora_eval.records",
    "Run": "lora_eval.records",
    "Suite": "lora_eval.protocols",
    "Variant": "lora_eval.records",
    "Verification": "lora_eval.records",
}

__all__ = [
    "ChatTemplate",
    "Comparison",
    "Engine",
    "EvalSuite",
    "Exporter",
    "Lineage",
    "LoraEvalError",
    "Recipe",
    "Run",
    "Suite",
    "Variant",
    "Verification",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lora_eval' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
