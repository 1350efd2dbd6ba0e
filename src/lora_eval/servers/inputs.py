"""What a server is judged by: configurations, headers of weights, lineage and texts of model and adapters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lora_eval.errors import ModelError
from lora_eval.fingerprint import fingerprint_folder
from lora_eval.models.lineage import read_lineage
from lora_eval.models.locate import adapter_weights, read_adapter_config, read_config, weight_files
from lora_eval.records import Lineage

PREFIX = "base_model.model."
_LAYER = re.compile(r"\.(\d+)\.")
_LORA = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?$")
_PACKED = (".qweight", ".weight_packed", ".weight")


@dataclass(frozen=True, slots=True)
class Tensor:
    """Shape and dtype of a stored tensor; the dtype as safetensors spells it."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class _Folder:
    """A folder that is served under `name`, with what model and adapter have in common."""

    name: str
    folder: Path

    @cached_property
    def lineage(self) -> Lineage | None:
        """lineage.json, or None."""
        return read_lineage(self.folder)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of everything that decides what it answers; reads all weights."""
        return fingerprint_folder(self.folder)


@dataclass(frozen=True)
class Model(_Folder):
    """A whole model as the server will open it; `name` is what requests call it."""

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json."""
        return read_config(self.folder, "config.json")

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the safetensors files, by name (ModelError where there are others)."""
        found: dict[str, Tensor] = {}
        for path in weight_files(self.folder):
            if path.suffix != ".safetensors":
                raise ModelError(
                    f"{path}: pickled weights cannot be checked without loading them; save the model as "
                    "safetensors"
                )
            found |= read_tensors(path)
        return found

    @property
    def quantization(self) -> dict[str, Any]:
        """`quantization_config` of config.json; empty for 16 or 32 bit weights."""
        return dict(self.config.get("quantization_config") or {})

    def value(self, *keys: str) -> Any:
        """Return the first of these keys that config.json has, also in its `text_config`; None for none."""
        for part in (self.config, self.config.get("text_config") or {}):
            for key in keys:
                if part.get(key) is not None:
                    return part[key]
        return None

    @cached_property
    def modules(self) -> dict[str, tuple[int, ...]]:
        """(out, in) of every layer with a two-dimensional weight, by its path; () where the stored form does
        not say. A head that is tied to the embedding is `lm_head`, with the embedding's shape.
        """
        found: dict[str, tuple[int, ...]] = {}
        for name, tensor in self.tensors.items():
            ending = next((end for end in _PACKED if name.endswith(end)), None)
            if ending is None:
                continue
            shape = self._logical_shape(tensor, ending)
            if shape is not None:
                found.setdefault(name.removesuffix(ending), shape)
        embedding = next((name for name in found if name.endswith("embed_tokens")), None)
        if embedding and self.value("tie_word_embeddings") and not any("lm_head" in name for name in found):
            found["lm_head"] = found[embedding]
        return found

    def _logical_shape(self, tensor: Tensor, ending: str) -> tuple[int, ...] | None:
        """(out, in) of a weight in this stored form; None for what is no matrix (norms)."""
        quantization = self.quantization
        if ending == ".qweight":  # GPTQ: (in * bits / 32, out) of 32-bit words; AWQ packs the other way
            bits = int(quantization.get("bits") or 0)
            if quantization.get("quant_method") != "gptq" or not bits:
                return ()
            return (tensor.shape[1], tensor.shape[0] * 32 // bits)
        if ending == ".weight_packed":  # compressed-tensors: (out, in * bits / 32) of 32-bit words
            groups = (quantization.get("config_groups") or {}).values()
            found = {(group.get("weights") or {}).get("num_bits") for group in groups}
            width = int(found.pop() or 0) if len(found) == 1 else 0
            return (tensor.shape[0], tensor.shape[1] * 32 // width) if width else ()
        if tensor.dtype in ("U8", "I8") and tensor.shape[-1] == 1:  # bitsandbytes: one long column
            return ()
        return tensor.shape if len(tensor.shape) == 2 else None

    def module(self, path: str) -> str | None:
        """Return the model's own path of the layer that an adapter calls `path`; None where it has none.

        Files of a bare model lack the first part of the path (GPT-2: `h.0` for `transformer.h.0`).
        """
        if path in self.modules:
            return path
        bare = path.partition(".")[2]
        return bare if bare in self.modules else None


@dataclass(frozen=True, slots=True)
class LoraTensor:
    """One A or B: which layer it belongs to, and its rank and its other length."""

    name: str
    module: str
    side: str
    embedding: bool
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Rows of A, columns of B."""
        return self.shape[0] if self.side == "A" else self.shape[1]

    @property
    def width(self) -> int:
        """The length that the base's layer must share: the input's for A, the output's for B."""
        return self.shape[1] if self.side == "A" else self.shape[0]


@dataclass(frozen=True)
class Adapter(_Folder):
    """An adapter as PEFT saved it; `name` is what requests call it."""

    @cached_property
    def config(self) -> dict[str, Any]:
        """adapter_config.json."""
        return read_adapter_config(self.folder)

    @property
    def pickled(self) -> bool:
        """True for adapter_model.bin, whose shapes nobody can see without loading it."""
        return adapter_weights(self.folder).suffix != ".safetensors"

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name; empty where it is pickled."""
        return {} if self.pickled else read_tensors(adapter_weights(self.folder))

    @cached_property
    def lora(self) -> tuple[LoraTensor, ...]:
        """All A and B matrices."""
        found = []
        for name, tensor in self.tensors.items():
            match = _LORA.match(name.removeprefix(PREFIX))
            if match and len(tensor.shape) == 2:
                embedding = match["embedding"] is not None
                found.append(LoraTensor(name, match["module"], match["side"], embedding, tensor.shape))
        return tuple(found)

    @property
    def targets(self) -> tuple[str, ...]:
        """Last parts of the names of the layers that it changes, sorted."""
        return tuple(sorted({tensor.module.rpartition(".")[2] for tensor in self.lora}))

    @property
    def rank(self) -> int:
        """The largest rank of its matrices, or (where they cannot be seen) of its configuration."""
        patterns = self.config.get("rank_pattern") or {}
        said = [int(self.config.get("r") or 0), *(int(rank) for rank in patterns.values())]
        return max([tensor.rank for tensor in self.lora] or said)


def layer_number(module: str) -> int | None:
    """Return the number of the layer that a path lies in, or None outside of the layers."""
    match = _LAYER.search(f".{module}.")
    return int(match[1]) if match else None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return shape and dtype of every tensor of a safetensors file, from its header.

    Raises:
        ModelError: it is cut short, or is no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: Tensor(tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except SafetensorError as error:
        raise ModelError(f"{path}: cannot be read as safetensors: {error}; copy it again") from error
