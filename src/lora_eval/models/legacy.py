"""Configuration files as transformers 4 reads them: TGI 3.3.7 has release 4.51, LoRAX an older one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CLASS = "TokenizersBackend"
_FAST = "PreTrainedTokenizerFast"
_SPECIAL = "extra_special_tokens"


def is_new_tokenizer(config: Mapping[str, Any]) -> bool:
    """Whether transformers 4 cannot open the tokenizer of this tokenizer_config.json."""
    return config.get("tokenizer_class") == _CLASS or isinstance(config.get(_SPECIAL), list)


def legacy_tokenizer(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return tokenizer_config.json so that transformers 4 opens it, and 5 still does. It stops at the class
    `TokenizersBackend` ("does not exist") and at a list of `extra_special_tokens` ("no attribute 'keys'").
    """
    found = dict(config)
    if found.get("tokenizer_class") == _CLASS:
        found["tokenizer_class"] = _FAST
    if isinstance(found.get(_SPECIAL), list):
        found["additional_special_tokens"] = found.pop(_SPECIAL)
    return found


def legacy_positions(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json with `rope_theta` and `rope_scaling` beside `rope_parameters`, which alone tell
    transformers 4 how positions turn; unchanged where layers differ in that, which it has no words for.
    """
    rotation = config.get("rope_parameters")
    if not isinstance(rotation, dict) or "rope_theta" not in rotation:
        return dict(config)
    scaling = {key: value for key, value in rotation.items() if key != "rope_theta"}
    found = {"rope_theta": rotation["rope_theta"]} | dict(config)
    if scaling.get("rope_type", "default") != "default":
        found.setdefault("rope_scaling", scaling)
    return found
