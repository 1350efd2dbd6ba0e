"""An adapter's weight changes, one target at a time, and a refusal of everything that is not plain LoRA."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_eval.errors import ModelError
from lora_eval.exporters.weights import read_header
from lora_eval.models.adapters import changes_the_base
from lora_eval.models.locate import adapter_weights, read_adapter_config

_PREFIX = "base_model.model."
# Options that decide where and how large the change is, and are read here, or that do not matter after
# training. Every other option that is set refuses the merge: what we do not know cannot be merged right.
_KNOWN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha",
    "lora_dropout", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
_REASONS = {
    "use_dora": "DoRA rescales each row of the merged weight",
    "modules_to_save": "whole modules were trained beside the LoRA matrices",
    "trainable_token_indices": "embeddings of single tokens were trained",
    "target_parameters": "LoRA on fused parameters (experts)",
    "bias": "the base's biases were trained",
    "lora_bias": "LoRA's B has a bias of its own",
}


@dataclass(frozen=True, slots=True)
class Target:
    """One linear layer that the adapter changes: its path in the model, rank and factor."""

    module: str
    rank: int
    scaling: float


class Adapter:
    """The plain LoRA adapter of a folder; tensors are read when asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_adapter_config(folder)
        check_supported(folder, self.config)
        self.path = adapter_weights(folder)
        if self.path.suffix != ".safetensors":
            raise ModelError(f"{self.path}: only adapters saved as safetensors can be merged; save it again")
        self._shapes = {name: info.shape for name, info in read_header(self.path).items()}
        modules, self.copies = self._sort()
        self.targets = self._read_targets(modules)

    def delta(self, target: Target) -> Any:
        """Return scaling * (B @ A) in float32, shaped (out, in) as `nn.Linear` stores it."""
        from safetensors import safe_open

        name = f"{_PREFIX}{target.module}"
        with safe_open(self.path, framework="pt") as file:
            a = file.get_tensor(f"{name}.lora_A.weight").float()  # (rank, in)
            b = file.get_tensor(f"{name}.lora_B.weight").float()  # (out, rank)
        return (b @ a) * target.scaling

    def shape(self, target: Target) -> tuple[int, int]:
        """Return (out, in) of the target as the adapter has it."""
        name = f"{_PREFIX}{target.module}"
        return self._shapes[f"{name}.lora_B.weight"][0], self._shapes[f"{name}.lora_A.weight"][1]

    def copy_of(self, module: str) -> Any:
        """Return the whole weight that the file holds for a module of `copies`."""
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(self.copies[module])

    def _sort(self) -> tuple[list[str], dict[str, str]]:
        """Return the modules with a lora_A, and the tensors that hold a module's whole weight."""
        modules, copies = [], {}
        for name in self._shapes:
            module, _, part = name.removeprefix(_PREFIX).rpartition(".lora_")
            whole = name.removeprefix(_PREFIX).removesuffix(".weight").removesuffix(".base_layer")
            if not name.startswith(_PREFIX):
                raise ModelError(f"{self.path}: holds '{name}', which PEFT does not name so")
            if part == "A.weight":
                modules.append(module)
            elif ".lora_" not in name and name.endswith(".weight"):
                copies[whole] = name
            elif part != "B.weight":
                raise ModelError(
                    f"{self.path}: holds '{name}', which is not the A or B of a linear layer; merging such "
                    "an adapter is not supported yet (merge it with PEFT's merge_and_unload and check it by "
                    "lora-eval verify)"
                )
        return modules, copies

    def _read_targets(self, modules: list[str]) -> dict[str, Target]:
        missing = [module for module in modules if f"{_PREFIX}{module}.lora_B.weight" not in self._shapes]
        if missing or 2 * len(modules) + len(self.copies) != len(self._shapes):
            raise ModelError(f"{self.path}: some of its layers have only one of lora_A and lora_B")
        return {module: self._target(module) for module in modules}

    def _target(self, module: str) -> Target:
        rank = int(_by_pattern(self.config.get("rank_pattern"), module, self.config["r"]))
        alpha = float(_by_pattern(self.config.get("alpha_pattern"), module, self.config["lora_alpha"]))
        stored = self._shapes[f"{_PREFIX}{module}.lora_A.weight"][0]
        if stored != rank:
            raise ModelError(
                f"{self.folder}: the configuration gives {module} rank {rank}, its weights have {stored}"
            )
        divisor = math.sqrt(rank) if self.config.get("use_rslora") else rank
        return Target(module, rank, alpha / divisor)


def check_supported(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise ModelError where a merge would need more than `W + scaling * (B @ A)`."""
    initial = str(config.get("init_lora_weights", True)).lower()
    if changes_the_base(initial):
        raise ModelError(
            f"{folder}: init_lora_weights is '{initial}': training began by changing the base's own weights, "
            "so B @ A is no change of the base given; save it as an ordinary LoRA with "
            "save_pretrained(path_initial_model_for_weight_conversion=...) and export that"
        )
    for key, value in config.items():
        if key in _KNOWN or not value or (key == "bias" and value == "none"):
            continue
        reason = f" ({_REASONS[key]})" if key in _REASONS else ""
        raise ModelError(
            f"{folder}: adapter_config.json has {key}={value!r}{reason}; merging that is not supported yet"
        )


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return the pattern's value for the module as PEFT looks it up, or the default."""
    if not patterns:
        return default
    from peft.utils.other import get_pattern_key

    return patterns.get(get_pattern_key(patterns.keys(), module), default)
