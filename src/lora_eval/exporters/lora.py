"""What a saved LoRA adapter holds: for each module of the base the change that PEFT would make to it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_eval.errors import ModelError
from lora_eval.exporters.weights import read_header
from lora_eval.models.locate import adapter_weights, read_adapter_config
from lora_eval.models.mergeable import initial_of, merge_refusals

PREFIX = "base_model.model."
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
    place, `tokens` (tensor and row numbers) replaces single rows, `lora` is added (to a bias: `bias`, a
    tensor's name and its factor). Tokens and LoRA meet where the embedding's tokens are those of a tied head
    with LoRA, which PEFT puts around them.
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
        faults = list(_faulty_numbers(self.config))
        if faults:
            raise ModelError(f"{folder / 'adapter_config.json'}: {'; '.join(faults)}; save the adapter again")
        self.path = adapter_weights(folder)
        if self.path.suffix != ".safetensors":
            raise ModelError(
                f"{self.path}: only safetensors can be merged; open the adapter with PEFT "
                "(PeftModel.from_pretrained) and save_pretrained it into a new folder"
            )
        self.infos = read_header(self.path)
        if not self.infos:
            raise ModelError(f"{self.path}: holds no tensor; save the adapter again")
        self.edits: dict[str, Edit] = {}
        self.parameters: dict[str, str] = {}
        for module, parts in self._sorted().items():
            self._add(module, parts)

    @property
    def initial(self) -> str:
        """How the matrices began (`initial_of`)."""
        return initial_of(self.config)

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
            if "lora" not in part:
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
        stored = {self.infos[a].shape[0], self.infos[b].shape[1]}
        if stored != {rank}:
            raise ModelError(
                f"{self.folder}: the configuration gives {module} rank {rank}, its weights have "
                f"{' and '.join(map(str, sorted(stored)))}; copy both files of one save"
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
    problems = merge_refusals(config)
    if "init_lora_weights" in problems:
        raise ModelError(
            f"{folder}: init_lora_weights is '{initial_of(config)}': {problems['init_lora_weights']}; save "
            "the adapter as an ordinary LoRA, with "
            "save_pretrained(path_initial_model_for_weight_conversion=...), and export that"
        )
    if problems:
        listed = ", ".join(f"{key}={config[key]!r}{why and f' ({why})'}" for key, why in problems.items())
        raise ModelError(f"{folder}: adapter_config.json has {listed}; merging that is not supported")


def _faulty_numbers(config: Mapping[str, Any]) -> Iterator[str]:
    """Say which ranks and alphas are not there or are no positive numbers."""
    for key, pattern in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        values: dict[str, Any] = {key: config.get(key)}
        special = config.get(pattern) or {}
        if isinstance(special, Mapping):
            values |= {f"{pattern}['{name}']": value for name, value in special.items()}
        else:
            yield f"{pattern} is {special!r}; expected numbers by layer"
        for name, value in values.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if key == "r" and not (number and value >= 1 and float(value).is_integer()):
                yield f"{name} is {value!r}; expected a whole number above 0"
            elif not number:
                yield f"{name} is {value!r}; expected a number"


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
