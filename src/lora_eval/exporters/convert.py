"""`lora`: the same change as one plain LoRA, which every server serves.

Three things keep servers from an adapter although B @ A is all that it is: a beginning that changed the base
(PiSSA, OLoRA), a scaling that is not alpha / r of one pair (rsLoRA, patterns), and layers named by a regular
expression. Each is written out here:

- W + change = W_res + s B A and W = W_res + s B0 A0, so change = s (B A - B0 A0) = s [B, -B0] [A; A0], of
  twice the rank (arXiv 2404.02948, section 3 and appendix C; PEFT's `subtract_mutated_init`).
- A layer's own scaling goes into its B; its rank is filled up with zeros, which change nothing.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_eval.errors import InputError, ModelError
from lora_eval.exporters.base_files import BaseFiles, open_base
from lora_eval.exporters.calibration import RECIPE
from lora_eval.exporters.carry import carry_companions, carry_files
from lora_eval.exporters.drift import begin
from lora_eval.exporters.lora import PREFIX, Adapter, Lora
from lora_eval.exporters.plan import make_plan
from lora_eval.exporters.steps import extend, lineage_of
from lora_eval.models.lineage import read_lineage
from lora_eval.models.mergeable import DRIFTING
from lora_eval.protocols import ExportRequest
from lora_eval.records import Lineage

_MERGE = "lora-eval export merge makes one model of it and the base"


@dataclass(frozen=True, slots=True)
class _Pair:
    """One layer's change: `scaling` times B @ A, in float32; `names` are PEFT's of A and B."""

    a: Any
    b: Any
    scaling: float
    names: tuple[str, str]

    @property
    def rank(self) -> int:
        return len(self.a)


class LoraExporter:
    """An adapter as a plain LoRA: one rank, one scaling, on the base as it is."""

    name = "lora"
    kind = "adapter"
    options = ("rank",)

    def export(self, request: ExportRequest) -> Lineage:
        """Write the adapter; returns its lineage (see `Exporter.export`).

        Raises:
            InputError: the rank asked for is below the adapter's.
            ModelError: the adapter does not fit the base, or is more than LoRA.
        """
        started = time.perf_counter()
        if request.adapter is None:
            raise InputError("export lora: needs the adapter to convert; give --adapter DIR")
        adapter = Adapter(request.adapter)
        lineage = lineage_of(request.base, request.adapter)
        base = open_base(request.base, None)
        _check(adapter, base, lineage)
        pairs: dict[str, _Pair] = {}
        for number, (module, edit) in enumerate(adapter.edits.items()):
            request.progress("converting", number, len(adapter.edits))
            if edit.lora is not None:
                pairs[module] = _pair(adapter, module, edit.lora, base, lineage.base_dtype)
        rank = _rank(request.options.get("rank"), pairs, adapter)
        scaling = Counter(pair.scaling for pair in pairs.values()).most_common(1)[0][0]
        _save(pairs, rank, scaling, request.out)
        config = _config(adapter.config, pairs, rank, scaling)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (request.out / "adapter_config.json").write_text(text, "utf-8")
        carry_companions(request.adapter, request.out)
        carry_files(request.adapter, request.out, (RECIPE,))
        arguments = {"rank": rank, "lora_alpha": config["lora_alpha"], "notes": list(_notes(adapter, rank))}
        return extend(
            lineage, request, kind="adapter", arguments=arguments, seconds=time.perf_counter() - started
        )


def _check(adapter: Adapter, base: BaseFiles, lineage: Lineage) -> None:
    """Raise ModelError for what no LoRA on the unchanged base can stand for."""
    outputs = [output for found in make_plan(base, adapter).shards.values() for output in found]
    whole = [output.module for output in outputs if output.edit.whole or output.edit.tokens]
    edits = [edit.lora for edit in adapter.edits.values() if edit.lora is not None]
    if whole or adapter.parameters:
        name = (whole or list(adapter.parameters))[0]
        raise ModelError(f"{adapter.folder}: holds whole weights ({name}), which are no LoRA; {_MERGE}")
    if any(lora.magnitude or lora.bias for lora in edits):
        what = "DoRA" if adapter.config.get("use_dora") else "LoRA with biases"
        raise ModelError(f"{adapter.folder}: is {what}, which no plain LoRA stands for; {_MERGE}")
    if not edits:
        raise ModelError(f"{adapter.folder}: holds no LoRA matrices; save the adapter again")
    if adapter.initial in DRIFTING and lineage.quantization:
        raise ModelError(
            f"{adapter.folder}: init_lora_weights '{adapter.initial}' changed the base before it was "
            f"quantized, and no LoRA gives that rounding back; {_MERGE}"
        )


def _pair(adapter: Adapter, module: str, lora: Lora, base: BaseFiles, dtype: str | None) -> _Pair:
    import torch

    a, b = adapter.tensor(lora.a).float(), adapter.tensor(lora.b).float()
    names = ("lora_embedding_A", "lora_embedding_B") if lora.embedding else ("lora_A.weight", "lora_B.weight")
    if adapter.initial in DRIFTING:
        first, second = _beginning(adapter, module, lora, base, dtype)
        a, b = torch.cat([a, first]), torch.cat([b, -second], dim=1)
    return _Pair(a, b, lora.scaling, names)


def _beginning(
    adapter: Adapter, module: str, lora: Lora, base: BaseFiles, dtype: str | None
) -> tuple[Any, Any]:
    """Return A0 and B0, with which PEFT began on this layer, by PEFT's own layer."""
    import torch
    from peft.tuners.lora.layer import Linear

    weight = base.tensor(str(base.tensor_of(module)))
    weight = weight.T if base.layers[module].transposed else weight
    weight = weight.to(getattr(torch, dtype)) if dtype else weight
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = torch.nn.Parameter(weight.contiguous().clone(), requires_grad=False)
    options = {"use_rslora": bool(adapter.config.get("use_rslora"))}
    where = f"{adapter.folder}: init_lora_weights '{adapter.initial}' on {module}"
    begun = begin(Linear, layer, lora, adapter.initial, options, where)
    return begun.lora_A["default"].weight.detach(), begun.lora_B["default"].weight.detach()


def _rank(asked: int | None, pairs: Mapping[str, _Pair], adapter: Adapter) -> int:
    least = max(pair.rank for pair in pairs.values())
    if asked is not None and asked < least:
        raise InputError(
            f"--rank {asked}: {adapter.folder} needs {least}; a smaller rank would be another model"
        )
    return asked or least


def _save(pairs: Mapping[str, _Pair], rank: int, scaling: float, out: Path) -> None:
    """Write the matrices in float32, filled up with zeros to `rank`, for one `scaling`."""
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    for module, pair in pairs.items():
        more = rank - pair.rank
        b = pair.b if pair.scaling == scaling else pair.b * (pair.scaling / scaling)
        tensors[f"{PREFIX}{module}.{pair.names[0]}"] = torch.nn.functional.pad(pair.a, (0, 0, 0, more))
        tensors[f"{PREFIX}{module}.{pair.names[1]}"] = torch.nn.functional.pad(b, (0, more)).contiguous()
    save_file(tensors, out / "adapter_model.safetensors", {"format": "pt"})


def _config(
    before: Mapping[str, Any], pairs: Mapping[str, _Pair], rank: int, scaling: float
) -> dict[str, Any]:
    """The adapter's configuration with one rank and scaling; a pattern of layers becomes their list."""
    alpha = scaling * rank
    found = dict(before) | {
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,  # copies of the base's own at most: others are refused
    }
    if isinstance(before.get("target_modules"), str):
        found |= {"target_modules": sorted(pairs), "exclude_modules": None}
        found |= {"layers_to_transform": None, "layers_pattern": None}
    return found


def _notes(adapter: Adapter, rank: int) -> list[str]:
    if adapter.initial not in DRIFTING:
        return []
    lineage = read_lineage(adapter.folder)
    dtype = lineage.base_dtype if lineage and lineage.base_dtype else "the base's own dtype"
    return [
        f"init_lora_weights '{adapter.initial}' left a base that was rounded to {dtype} once more; the plain "
        f"LoRA of rank {rank} is on the base without that rounding"
    ]
