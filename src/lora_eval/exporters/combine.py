"""Several adapters become one, layer by layer, by PEFT's own arithmetic (`add_weighted_adapter`).

`linear`, `ties` (arXiv 2306.01708), `dare_linear`, `dare_ties` (arXiv 2311.03099) and `magnitude_prune` work
on the A matrices and on the B matrices, as PEFT does it; `cat` gives the weighted sum of the changes exactly.
The result is an adapter folder, so it can be measured before it is merged.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lora_eval.errors import InputError, ModelError
from lora_eval.exporters.carry import carry_companions
from lora_eval.exporters.lora import PREFIX, Adapter, Lora
from lora_eval.fingerprint import fingerprint_data, fingerprint_folder
from lora_eval.models import read_lineage, write_lineage
from lora_eval.protocols import ExportRequest
from lora_eval.records import Lineage, Step, Variant
from lora_eval.registry import own_version

FOLDER = "combined_adapter"
METHODS = ("linear", "cat", "ties", "dare_linear", "dare_ties", "magnitude_prune")
_PRUNING = ("ties", "dare_linear", "dare_ties", "magnitude_prune")


@dataclass(frozen=True, slots=True)
class Combination:
    """How adapters are combined; `density` is the share of values that pruning keeps, `seed` DARE's."""

    method: str
    weights: tuple[float, ...]
    density: float | None = None
    seed: int = 0

    def described(self, folders: Sequence[Path]) -> dict[str, Any]:
        """Return it for the lineage."""
        found: dict[str, Any] = {
            "method": self.method,
            "adapters": [str(folder) for folder in folders],
            "weights": list(self.weights),
        }
        if self.density is not None:
            found["density"] = self.density
        return found | ({"seed": self.seed} if self.method.startswith("dare") else {})


def read_combination(options: Mapping[str, Any], count: int) -> Combination:
    """Return what the options ask for, for `count` adapters.

    Raises:
        InputError: an unknown method, another number of weights, or a density where there is none to give.
    """
    method = options.get("combine") or "linear"
    weights = tuple(float(weight) for weight in options.get("weights") or [1.0] * count)
    density = options.get("density")
    if method not in METHODS:
        why = "; svd cuts the sum down to a rank, which a merge need not: use cat" if "svd" in method else ""
        raise InputError(f"--combine {method}: expected one of {', '.join(METHODS)}{why}")
    if count == 1 and (options.get("weights") or options.get("combine")):
        raise InputError("--weight and --combine are for several adapters; give --adapter more than once")
    if len(weights) != count:
        raise InputError(
            f"{len(weights)} times --weight for {count} adapters; give one for each, in their order"
        )
    if not all(math.isfinite(weight) for weight in weights):
        raise InputError(f"--weight {' '.join(map(str, weights))}: expected finite numbers")
    if (density is not None) != (method in _PRUNING):
        said = f"needs --density, the share of values to keep ({', '.join(_PRUNING)} do)"
        raise InputError(
            f"--combine {method}: {said if density is None else 'prunes nothing; leave out --density'}"
        )
    if density is not None and not 0 < density <= 1:
        raise InputError(f"--density {density}: expected a share above 0 and up to 1")
    return Combination(method, weights, density, int(options.get("seed") or 0))


def combined_request(
    request: ExportRequest, others: Sequence[Path], combination: Combination, lineage: Lineage
) -> tuple[ExportRequest, Lineage]:
    """Combine the request's adapter with the others into `combined_adapter` in the export's folder, where it
    stays so that it can be measured; returns the request for that one, and the lineage with it.
    """
    first = request.adapter or request.base
    folders = [first, *others]
    _check_known(folders, request.options)
    folder = request.out / FOLDER
    folder.mkdir()
    combine([Adapter(path) for path in folders], combination, folder)
    carry_companions(first, folder)
    prints = [fingerprint_folder(path) for path in folders]
    variants = [
        Variant(kind="adapter", path=str(path), fingerprint=found)
        for path, found in zip(others, prints[1:], strict=True)
    ]
    made = fingerprint_folder(folder)
    variants.append(Variant(kind="adapter", path=FOLDER, fingerprint=made, parent=prints[0]))
    step = Step(
        tool="lora-eval export merge",
        version=own_version(),
        arguments={"combine": combination.described(folders)},
        inputs={f"adapter{number}": found for number, found in enumerate(prints)},
    )
    extended = lineage.model_copy(
        update={"variants": (*lineage.variants, *variants), "steps": (*lineage.steps, step)}
    )
    write_lineage(folder, extended)
    return replace(request, adapter=folder), extended


def _check_known(folders: Sequence[Path], options: Mapping[str, Any]) -> None:
    """Raise ModelError where one adapter's base was quantized, and no lineage says whether another's was."""
    lineages = {folder: read_lineage(folder) for folder in folders}
    unknown = [folder for folder, lineage in lineages.items() if lineage is None]
    quantized = [folder for folder, lineage in lineages.items() if lineage and lineage.quantization]
    if unknown and quantized and not options.get("quantize") and options.get("onto") != "original":
        raise ModelError(
            f"{unknown[0]}: no lineage.json says how the base was quantized in training, and {quantized[0]} "
            "was trained on a quantized one; say with --quantize what holds for all, or give --onto original"
        )


def combine(adapters: Sequence[Adapter], combination: Combination, folder: Path) -> Adapter:
    """Write the combined adapter into an empty folder and return it; one layer at a time is in memory.

    Raises:
        ModelError: an adapter holds more than LoRA matrices, or they were trained on different bases.
    """
    import torch
    from safetensors.torch import save_file

    _check(adapters, combination)
    tensors: dict[str, Any] = {}
    ranks: dict[str, int] = {}
    with torch.random.fork_rng():
        for module in dict.fromkeys(module for adapter in adapters for module in adapter.edits):
            a, b, embedding = _layer(adapters, module, combination)
            names = (
                ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
            )
            tensors |= {
                f"{PREFIX}{module}.{names[0]}": a.contiguous(),
                f"{PREFIX}{module}.{names[1]}": b.contiguous(),
            }
            ranks[module] = len(a)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = dict(adapters[0].config)
    rank = max(ranks.values())
    # The weights hold all factors, so the scaling is 1: alpha = rank, and never rsLoRA's rank / sqrt(rank),
    # which PEFT 0.21.2 leaves switched on.
    different = {module: found for module, found in ranks.items() if found != rank}
    config |= {
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "rank_pattern": different,
        "alpha_pattern": different,
        "target_modules": sorted(ranks),
        "init_lora_weights": True,
        "inference_mode": True,
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    return Adapter(folder)


def _layer(adapters: Sequence[Adapter], module: str, combination: Combination) -> tuple[Any, Any, bool]:
    """Return A, B and whether it is an embedding, from the adapters that change this layer."""
    import torch
    from peft.tuners.lora import LoraModel

    found = {
        str(number): adapter.edits[module].lora
        for number, adapter in enumerate(adapters)
        if module in adapter.edits
    }
    loras: dict[str, Lora] = {name: lora for name, lora in found.items() if lora is not None}
    a = {name: adapters[int(name)].tensor(lora.a).float() for name, lora in loras.items()}
    b = {name: adapters[int(name)].tensor(lora.b).float() for name, lora in loras.items()}
    embedding = any(lora.embedding for lora in loras.values())
    weights = [combination.weights[int(name)] for name in loras]
    if combination.method == "cat":
        scaled = [
            a[name] * weight * lora.scaling
            for (name, lora), weight in zip(loras.items(), weights, strict=True)
        ]
        return torch.cat(scaled), torch.cat(list(b.values()), dim=1), embedding
    ranks = {lora.rank for lora in loras.values()}
    if len(ranks) > 1:
        raise ModelError(
            f"{module} has ranks {', '.join(map(str, sorted(ranks)))} in the adapters; {combination.method} "
            "needs the same; --combine cat takes any"
        )
    target = SimpleNamespace(
        lora_A={name: SimpleNamespace(weight=tensor) for name, tensor in a.items()},
        lora_B={name: SimpleNamespace(weight=tensor) for name, tensor in b.items()},
        lora_embedding_A={},
        scaling={name: lora.scaling for name, lora in loras.items()},
    )
    # Each layer draws for itself: the result does not depend on the order of layers in the files.
    torch.manual_seed(int(fingerprint_data([combination.seed, module])[-8:], 16))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The density 1")
        mixed = LoraModel._generalized_task_arithmetic_weighted_adapter(
            None, combination.method, list(loras), weights, target, combination.density, "total"
        )
    return mixed[0], mixed[1], embedding


def _check(adapters: Sequence[Adapter], combination: Combination) -> None:
    problems = []
    for adapter in adapters:
        extra = [
            module for module, edit in adapter.edits.items() if edit.tokens or (edit.whole and not edit.lora)
        ]
        if extra or adapter.parameters:
            name = (extra or list(adapter.parameters))[0]
            problems.append(f"{adapter.folder}: holds whole weights ({name}), which have no sum")
        if any(edit.lora and (edit.lora.magnitude or edit.lora.bias) for edit in adapter.edits.values()):
            problems.append(f"{adapter.folder}: is DoRA or has biases, which PEFT does not combine")
        if adapter.initial in ("pissa", "olora"):
            problems.append(f"{adapter.folder}: init_lora_weights '{adapter.initial}' changed its own base")
    lineages = [read_lineage(adapter.folder) for adapter in adapters]
    for what in ("quantization", "base_dtype"):
        values = [getattr(lineage, what) for lineage in lineages if lineage is not None]
        if any(value != values[0] for value in values):
            problems.append(f"the adapters were trained with different {what}: {values}")
    bases = {lineage.variants[0].fingerprint for lineage in lineages if lineage is not None}
    if len(bases) > 1:
        problems.append(f"the adapters were trained on {len(bases)} different bases")
    if problems:
        raise ModelError(f"these adapters cannot be combined by {combination.method}: " + "; ".join(problems))
