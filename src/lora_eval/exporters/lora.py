"""What a saved LoRA adapter holds: for each module of the base the change that PEFT would make to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_eval.errors import ModelError
from lora_eval.exporters.weights import read_header
from lora_eval.models.locate import adapter_weights, read_adapter_config

PREFIX = "base_model.model."
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
# Beginnings that leave the base as it is. PiSSA and OLoRA change it by a rule that `drift` repeats.
_INITIAL = {"true", "false", "gaussian", "eva", "orthogonal", "mica", "pissa", "olora"}
_TOKENS = "trainable_tokens_delta"


@dataclass(frozen=True, slots=True)
class Lora:
    """B @ A times `scaling` for one module; `magnitude` names DoRA's vector, `bias` that of lora_bias."""

    a: str
    b: str
    rank: int
    alpha: float
    scaling: float
    embedding: bool = False  # stored as A (rank, tokens) and B (hidden, rank)
    magnitude: str | None = None
    bias: str | None = None


@dataclass(frozen=True, slots=True)
class Edit:
    """What the adapter does to one module's weight, in this order: `whole` names the tensor that takes its
    place, `lora` is added (to a bias: `bias`, a tensor's name and its factor), `tokens` (tensor and row
    numbers) replaces single rows.
    """

    whole: str | None = None
    lora: Lora | None = None
    tokens: tuple[str, tuple[int, ...]] | None = None
    bias: tuple[str, float] | None = None


class Adapter:
    """The adapter of a folder. `edits` are by the module's path, `parameters` (biases, and everything in a
    module saved whole) by the parameter's path; tensors are read when asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_adapter_config(folder)
        check_supported(folder, self.config)
        self.path = adapter_weights(folder)
        if self.path.suffix != ".safetensors":
            raise ModelError(f"{self.path}: only adapters saved as safetensors can be merged; save it again")
        self.infos = read_header(self.path)
        self.edits: dict[str, Edit] = {}
        self.parameters: dict[str, str] = {}
        for module, parts in self._sorted().items():
            self._add(module, parts)

    @property
    def initial(self) -> str:
        """How the matrices began, in lower case: `true`, `gaussian`, `pissa`, ..."""
        return _initial(self.config)

    def tensor(self, name: str) -> Any:
        """Return one tensor as it is stored."""
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return self.infos[name].shape

    def _sorted(self) -> dict[str, dict[str, str]]:
        """Return each module's tensors by what they are."""
        found: dict[str, dict[str, str]] = {}
        for name in self.infos:
            if not name.startswith(PREFIX):
                raise ModelError(f"{self.path}: holds '{name}', which PEFT does not name so")
            # Wrappers around the module, and copies of it that PEFT saves when a vocabulary was resized.
            path = name.removeprefix(PREFIX)
            if ".original_module." in path:
                continue
            path = path.replace(".token_adapter.", ".").replace(".base_layer.", ".")
            path = path.replace(".modules_to_save.", ".")
            module, part = _split(path)
            found.setdefault(module, {})[part] = name
        return found

    def _add(self, module: str, parts: dict[str, str]) -> None:
        lora = self._lora(module, parts)
        tokens = parts.pop(_TOKENS, None)
        whole = parts.pop("weight", None)
        for part in list(parts):
            if "." not in part and "lora" not in part:
                self.parameters[f"{module}.{part}"] = parts.pop(part)
        if parts:
            raise ModelError(
                f"{self.path}: holds '{next(iter(parts.values()))}', which is no part of a LoRA that can be "
                "merged (merge it with PEFT's merge_and_unload and check it by lora-eval verify)"
            )
        if lora or tokens or whole:
            rows = (tokens, self._token_rows(module, tokens)) if tokens else None
            self.edits[module] = Edit(whole, lora, rows)

    def _lora(self, module: str, parts: dict[str, str]) -> Lora | None:
        """Return the module's LoRA, its tensors taken out of `parts`."""
        embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
        names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        a, b = (parts.pop(name, None) for name in names)
        if a is None and b is None:
            return None
        if a is None or b is None:
            raise ModelError(f"{self.path}: {module} has only one of lora_A and lora_B")
        rank = int(by_pattern(self.config.get("rank_pattern"), module, self.config["r"]))
        alpha = float(by_pattern(self.config.get("alpha_pattern"), module, self.config["lora_alpha"]))
        stored = self.infos[a].shape[0]
        if stored != rank or self.infos[b].shape[1] != rank:
            raise ModelError(
                f"{self.folder}: the configuration gives {module} rank {rank}, its weights have {stored}"
            )
        scaling = alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        magnitude = parts.pop("lora_magnitude_vector", None) or parts.pop(
            "lora_magnitude_vector.weight", None
        )
        if bool(self.config.get("use_dora")) != (magnitude is not None):
            said, held = ("use_dora", "no") if magnitude is None else ("no use_dora", "a")
            raise ModelError(f"{self.folder}: the configuration has {said}, {module} {held} magnitude vector")
        return Lora(a, b, rank, alpha, scaling, embedding, magnitude, parts.pop("lora_B.bias", None))

    def _token_rows(self, module: str, name: str) -> tuple[int, ...]:
        """Return the row numbers of a module's trained tokens, as the configuration gives them."""
        given = self.config.get("trainable_token_indices") or []
        if isinstance(given, dict):
            given = next((v for key, v in given.items() if f".{module}".endswith(f".{key}")), [])
        rows = tuple(int(row) for row in given)
        if len(rows) != self.infos[name].shape[0]:
            raise ModelError(
                f"{self.folder}: trainable_token_indices names {len(rows)} tokens for {module}, the weights "
                f"hold {self.infos[name].shape[0]}"
            )
        return rows


def check_supported(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise ModelError where no weights can stand for the adapter, or we do not know which."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{folder}: peft_type is {kind!r}; expected LORA (DoRA and rsLoRA included)")
    problems = refusals(config)
    if "init_lora_weights" in problems:
        raise ModelError(
            f"{folder}: init_lora_weights is '{_initial(config)}': {problems['init_lora_weights']}; save the "
            "adapter as an ordinary LoRA, with "
            "save_pretrained(path_initial_model_for_weight_conversion=...), and export that"
        )
    if problems:
        listed = ", ".join(f"{key}={config[key]!r}{why and f' ({why})'}" for key, why in problems.items())
        raise ModelError(f"{folder}: adapter_config.json has {listed}; merging that is not supported")


def refusals(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the options of a LoraConfig with which an adapter cannot be merged, each with the reason (empty
    where it is only not known here); empty where it can be.
    """
    initial, found = _initial(config), {}
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


def _initial(config: Mapping[str, Any]) -> str:
    return str(config.get("init_lora_weights", True)).lower()


def by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return the pattern's value for the module as PEFT looks it up, or the default."""
    if not patterns:
        return default
    from peft.utils.other import get_pattern_key

    return patterns.get(get_pattern_key(patterns.keys(), module), default)


def _split(path: str) -> tuple[str, str]:
    """Return module and part: `m.q.lora_A.weight` is `m.q` and `lora_A.weight`."""
    module, found, part = path.partition(".lora_")
    if found:
        return module, f"lora_{part}"
    module, _, part = path.rpartition(".")
    return module, part
