"""Which LoRA configurations one set of weights can stand for, and why others cannot be merged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Options that decide where and how large the change is and are read here, or that do not matter after
# training. Every other option that is set refuses the merge: what we do not know cannot be merged right.
_KNOWN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "trainable_token_indices", "use_dora", "use_rslora",
}  # fmt: skip
_REASONS = {
    "target_parameters": "LoRA on fused parameters (experts)",
    "layer_replication": "the model has other layers than the base",
    "alora_invocation_tokens": "it acts only after those tokens, so no weights can stand for it",
    "use_qalora": "its A reads the mean of a group of inputs",
    "kasa_config": "KaSA cuts the base's smallest singular values off and adds a diagonal",
}
# Beginnings that leave the base as it is. Those that drift change it by a rule that can be repeated.
DRIFTING = ("pissa", "olora")
_INITIAL = {"true", "false", "gaussian", "eva", "orthogonal", "mica", *DRIFTING}


def merge_refusals(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the options of a LoraConfig with which an adapter cannot be merged, each with the reason (empty
    where it is only not known here); empty where it can be.
    """
    initial, found = initial_of(config), {}
    if initial not in _INITIAL:
        found["init_lora_weights"] = (
            "its beginning is drawn at random and not the same after loading (measured: logits 0.3 off)"
            if initial.startswith("pissa_niter")
            else "training began by changing the base's own weights in a way that cannot be repeated"
            if initial.startswith(("corda", "loftq", "lora_ga"))
            else "that way to begin is not known here"
        )
    for key, value in config.items():
        # PEFT writes a section that its beginning does not read as {} or with its defaults.
        unread = key.removesuffix("_config") in ("corda", "lora_ga", "loftq") and initial != key[:-7]
        if value and key not in _KNOWN and not unread:
            found[key] = _REASONS.get(key, "")
    return found


def initial_of(config: Mapping[str, Any]) -> str:
    """Return how the matrices began, in lower case: `true`, `gaussian`, `pissa`, ..."""
    return str(config.get("init_lora_weights", True)).lower()
