"""What an adapter has beside plain LoRA: each feature with what was found, whatever a server makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from lora_eval.records import Finding
from lora_eval.records.deployment import Severity
from lora_eval.servers.commands import merge_fix, plain_fix
from lora_eval.servers.inputs import PREFIX, Adapter, Model

# Initialisations that change the base's own weights: what is saved is not the change from the base.
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq")
# Options of PEFT 0.21.2 that decide nothing after training, or that a detector below or a shape stands for.
_HARMLESS = {
    "arrow_config", "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config",
    "megatron_config", "megatron_core", "monteclora_config", "peft_type", "peft_version",
    "qalora_group_size", "r", "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
    "velora_config",
}  # fmt: skip
_VOCABULARY = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server makes of a feature: how bad, why, where upstream says so, and what helps: to merge the
    adapter, or to write it as a plain LoRA.
    """

    severity: Severity
    reason: str
    issue: str | None = None
    remedy: Literal["merge", "lora"] = "merge"


Answers = dict[str, Answer]
Detector = Callable[[Adapter, Model], str | None]


def feature_findings(adapter: Adapter, model: Model, answers: Answers) -> Iterator[Finding]:
    """Say what the server makes of each feature that the adapter has and `answers` holds."""
    for rule, detect in DETECTORS.items():
        answer = answers.get(rule)
        found = detect(adapter, model) if answer else None
        if answer is None or found is None:
            continue
        fix = plain_fix(adapter, model) if answer.remedy == "lora" else merge_fix(adapter, model)
        yield Finding(
            arm=adapter.name,
            rule=rule,
            severity=answer.severity,
            reason=f"{found}: {answer.reason}",
            issue=answer.issue,
            fix=None if answer.severity == "info" else fix,
        )


def _flag(key: str) -> Detector:
    def detect(adapter: Adapter, model: Model) -> str | None:
        value = adapter.config.get(key)
        return f"{key} is {value!r}" if value else None

    return detect


def _other_type(adapter: Adapter, model: Model) -> str | None:
    kind = adapter.config.get("peft_type")
    return None if kind == "LORA" else f"peft_type is {kind!r}"


def _pickled(adapter: Adapter, model: Model) -> str | None:
    return "the weights are pickled (adapter_model.bin)" if adapter.pickled else None


def _bias(adapter: Adapter, model: Model) -> str | None:
    bias = adapter.config.get("bias", "none")
    return None if bias == "none" else f"bias is {bias!r}"


def _initialisation(adapter: Adapter, model: Model) -> str | None:
    initial = adapter.config.get("init_lora_weights")
    if not isinstance(initial, str) or not initial.lower().startswith(_CHANGE_THE_BASE):
        return None
    if initial.lower() in ("pissa", "olora"):
        return f"init_lora_weights is {initial!r}"
    return (
        f"init_lora_weights is {initial!r}, which cannot be repeated (only the training can save it as plain "
        "LoRA, with save_pretrained(path_initial_model_for_weight_conversion=...))"
    )


def _patterns(adapter: Adapter, model: Model) -> str | None:
    """Entries that give a layer another rank or alpha than the adapter's own."""
    config = adapter.config
    own = {"rank_pattern": config.get("r"), "alpha_pattern": config.get("lora_alpha")}
    set_ones = [
        key for key, value in own.items() if any(v != value for v in (config.get(key) or {}).values())
    ]
    return f"{' and '.join(set_ones)} set" if set_ones else None


def _rslora(adapter: Adapter, model: Model) -> str | None:
    return "use_rslora is True" if adapter.config.get("use_rslora") and adapter.rank > 1 else None


def _tokens(adapter: Adapter, model: Model) -> str | None:
    held = any("trainable_tokens" in name for name in adapter.tensors)
    return "single tokens were trained (trainable_token_indices)" if held or _indices(adapter) else None


def _indices(adapter: Adapter) -> bool:
    return bool(adapter.config.get("trainable_token_indices"))


def _whole(adapter: Adapter, model: Model) -> str | None:
    whole = adapter.config.get("modules_to_save")
    return f"modules_to_save is {sorted(whole)}" if whole else None


def _copies(adapter: Adapter, *, resized: bool, model: Model) -> list[str]:
    """Names of the whole embeddings that the adapter holds beside modules_to_save."""
    kept = set(adapter.config.get("modules_to_save") or ())
    found = []
    for name, tensor in adapter.tensors.items():
        path = name.removeprefix(PREFIX)
        if ".lora_" in path or not path.endswith(".weight"):
            continue
        module = path.removesuffix(".weight").removesuffix(".base_layer")
        last = module.rpartition(".")[2]
        if last not in _VOCABULARY or last in kept:
            continue
        own = model.module(module)
        same = own is not None and model.modules[own] == tensor.shape
        if same != resized:
            found.append(f"{module} {list(tensor.shape)}")
    return found


def _resized(adapter: Adapter, model: Model) -> str | None:
    copies = _copies(adapter, resized=True, model=model)
    return f"a resized vocabulary ({', '.join(copies)})" if copies else None


def _copied(adapter: Adapter, model: Model) -> str | None:
    copies = _copies(adapter, resized=False, model=model)
    return f"a copy of the base's own {', '.join(copies)}" if copies else None


def _head(adapter: Adapter, model: Model) -> str | None:
    adapted = any(tensor.module.rpartition(".")[2] == "lm_head" for tensor in adapter.lora)
    return "LoRA on lm_head" if adapted else None


def _regex(adapter: Adapter, model: Model) -> str | None:
    target = adapter.config.get("target_modules")
    named = isinstance(target, str) and target not in ("all", "all-linear")
    return f"target_modules is the pattern {target!r}" if named else None


def _others(adapter: Adapter, model: Model) -> str | None:
    known = _HARMLESS | _SPOKEN_FOR
    unknown = sorted(key for key, value in adapter.config.items() if value and key not in known)
    return f"{', '.join(unknown)} set in adapter_config.json" if unknown else None


DETECTORS: dict[str, Detector] = {
    "peft-type": _other_type,
    "file-format": _pickled,
    "dora": _flag("use_dora"),
    "rslora": _rslora,
    "patterns": _patterns,
    "modules-to-save": _whole,
    "bias": _bias,
    "lora-bias": _flag("lora_bias"),
    "initialisation": _initialisation,
    "alora": _flag("alora_invocation_tokens"),
    "layer-replication": _flag("layer_replication"),
    "bdlora": _flag("use_bdlora"),
    "qalora": _flag("use_qalora"),
    "trained-tokens": _tokens,
    "resized-vocabulary": _resized,
    "copied-vocabulary": _copied,
    "lm-head": _head,
    "target-pattern": _regex,
    "other-options": _others,
}
_SPOKEN_FOR = {
    "use_dora", "lora_bias", "bias", "rank_pattern", "alpha_pattern", "modules_to_save", "use_qalora",
    "alora_invocation_tokens", "layer_replication", "use_bdlora", "trainable_token_indices",
    "target_parameters",
}  # fmt: skip
