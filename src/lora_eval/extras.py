"""Import an optional library, or say which pip command installs it."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from lora_eval.errors import MissingExtraError


def require(module: str, extra: str) -> ModuleType:
    """Return the imported module.

    Raises:
        MissingExtraError: it is not installed, or fails on import; names the extra and the cause.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"this needs {module}, which cannot be imported ({error}); "
            f"install it with: pip install 'lora-eval[{extra}]'"
        ) from error
