"""The two arms of a verification: found, described as variants, opened one by one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from lora_eval.errors import InputError, ModelError
from lora_eval.fingerprint import fingerprint_folder
from lora_eval.models import (
    NF4,
    Resident,
    load_tokenizer,
    needs_own_base,
    open_adapter,
    open_folder,
    open_resident,
    parse_arm,
    read_lineage,
    resolve_adapter,
    resolve_model,
)
from lora_eval.models.lineage import trained_quantization
from lora_eval.models.locate import read_config
from lora_eval.records import Variant, VariantKind
from lora_eval.schema import suggest

_KINDS = tuple(kind for kind in get_args(VariantKind) if kind not in ("served", "gguf"))
_SERVER = "a server tells the probabilities of a few tokens only, not the distributions that are compared"
_WITHOUT_LOGITS = {
    **dict.fromkeys(("served", "http", "https"), _SERVER),
    "gguf": "llama.cpp's files cannot be opened here",
}
_ADAPTER = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class ArmPath:
    """An arm as the command line names it, found on disk. `base` is set for adapters only; `quantized_as`
    holds the arguments of `BitsAndBytesConfig` known from elsewhere (None: as the lineage says), `loaded_as`
    the dtype in which training loaded a whole model, where it is not the stored one.
    """

    name: str
    kind: VariantKind
    path: Path
    revision: str | None = None
    base: Path | None = None
    quantized_as: dict[str, Any] | None = field(default=None, compare=False)
    loaded_as: str | None = None

    @property
    def quantized(self) -> bool:
        """Whether the weights are stored quantized (GPTQ, AWQ)."""
        return self.kind != "adapter" and bool(
            read_config(self.path, "config.json").get("quantization_config")
        )

    @property
    def is_gptq(self) -> bool:
        """Whether the weights are stored as GPTQ models have them."""
        if self.kind == "adapter":
            return False
        stored = read_config(self.path, "config.json").get("quantization_config") or {}
        return bool(stored.get("quant_method") == "gptq")

    @property
    def base_fingerprint(self) -> str | None:
        """Of the model under an adapter; None for a whole model."""
        return None if self.base is None else fingerprint_folder(self.base)

    @property
    def stored_dtype(self) -> str:
        """The dtype that the configuration names, of an adapter that of its training or of its base; float32
        where none is named, as transformers takes it.
        """
        lineage = read_lineage(self.path) if self.base else None
        if lineage is not None and lineage.base_dtype:
            return lineage.base_dtype
        config = read_config(self.base or self.path, "config.json")
        return str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")

    def arithmetic(self, dtype: str, quantize: str) -> dict[str, Any]:
        """Return what decides the numbers beside the weights, without opening the arm."""
        if self.kind != "adapter":
            chosen = self.loaded_as if dtype == "auto" and self.loaded_as else dtype
            return {"dtype": chosen, "quantization": self.quantized_as}
        lineage = read_lineage(self.path)
        if dtype == "auto" and lineage is not None and lineage.base_dtype:
            dtype = lineage.base_dtype
        return {"dtype": dtype, "quantization": self.quantization(quantize)}

    def variant(self) -> Variant:
        """Return the arm as records name it; its parent is what its lineage says."""
        lineage = read_lineage(self.path)
        last = lineage.variants[-1] if lineage else None
        return Variant(
            kind=self.kind,
            path=str(self.path),
            revision=self.revision,
            fingerprint=fingerprint_folder(self.path),
            parent=last.parent if last else None,
            made_by=last.made_by if last else None,
        )

    def open(self, *, dtype: str = "auto", quantize: str = "auto") -> Resident:
        """Return the arm in memory as it is evaluated: an adapter on its base, quantized as in training and
        in the same dtype.
        """
        if self.kind != "adapter" or self.base is None:
            if self.quantized_as:
                return open_resident(self.path, base_name=self.name, **self.arithmetic(dtype, quantize))
            return open_folder(self.path, name=self.name, dtype=dtype)
        opened = self.arithmetic(dtype, quantize)
        if needs_own_base(self.path, self.base):
            resident = open_adapter(self.base, self.path, name=self.name, **opened)
        else:
            resident = open_resident(self.base, {self.name: self.path}, base_name="__base__", **opened)
        if (self.path / "tokenizer_config.json").is_file():
            resident.tokenizer = load_tokenizer(self.path)
        if (self.path / "generation_config.json").is_file():
            from transformers import GenerationConfig

            settings = GenerationConfig.from_pretrained(self.path, local_files_only=True)
            resident.model.generation_config = settings
        return resident

    def quantization(self, quantize: str) -> dict[str, Any] | None:
        """Return the arguments of `BitsAndBytesConfig` for the base: as trained, or as asked for."""
        if self.quantized_as:
            return self.quantized_as
        if quantize != "auto":
            return dict(NF4) if quantize == "nf4" else None
        return trained_quantization(self.path)


def parse_arm_path(text: str, base: Path | None, *, option: str) -> ArmPath:
    """Return the arm of `[NAME=][KIND:]PATH[@REVISION]`; `base` is what an adapter is opened on.

    Raises:
        InputError: an unknown kind, or an adapter without a base.
        ModelError: there is no such model.
    """
    name, place, revision = parse_arm(text)
    kind, colon, rest = place.partition(":")
    if colon and not Path(place).expanduser().exists():
        if kind in _WITHOUT_LOGITS:
            raise InputError(
                f"{option} {text}: {_WITHOUT_LOGITS[kind]}; verify the model's own folder, "
                "then ask the server itself with `lora-eval smoke`"
            )
        if kind not in _KINDS:
            raise InputError(
                f"{option} {text}: unknown kind '{kind}'{suggest(kind, _KINDS)}; known: {', '.join(_KINDS)}"
            )
        place = rest
    else:
        kind = ""
    given = Path(place).expanduser()
    is_adapter = kind == "adapter" or (not kind and (given / _ADAPTER).is_file())
    if not is_adapter:
        folder = resolve_model(place, revision)
        chosen = kind or _kind_of(folder)
        return ArmPath(name or chosen, cast(VariantKind, chosen), folder, revision)
    if base is None:
        raise InputError(f"{option} {text}: an adapter needs the model it was trained on; give --base")
    return ArmPath(name or "adapter", "adapter", resolve_adapter(place, revision), revision, base)


def _kind_of(folder: Path) -> str:
    """What the lineage says, else what the configuration shows."""
    lineage = read_lineage(folder)
    if lineage is not None:
        return lineage.variants[-1].kind
    method = (read_config(folder, "config.json").get("quantization_config") or {}).get("quant_method")
    return str(method) if method in ("gptq", "awq") else "base"


def arm_vocabulary(resident: Resident) -> int:
    """Return the number of next tokens that the model distinguishes."""
    head = resident.model.get_output_embeddings()
    size = getattr(resident.model.config, "vocab_size", None)
    if head is not None and getattr(head, "weight", None) is not None:
        return int(head.weight.shape[0])
    if size is None:
        raise ModelError("the model says neither its vocabulary nor has an output layer")
    return int(size)
