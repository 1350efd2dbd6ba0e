"""The reference's own weights in another arithmetic: how much rounding alone changes its answers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from lora_eval.models import Resident
from lora_eval.models.dense import dequantize_nf4

_COLUMNS = 1024  # of a weight asked for at once


def floor_dtype(reference: str, candidate: str) -> str:
    """Return the dtype of the noise floor: the candidate's where it differs from the reference's, else the
    next wider one.
    """
    if candidate != reference:
        return candidate
    return "float64" if reference == "float32" else "float32"


def convert(resident: Resident, dtype: str) -> None:
    """From now on the arm computes in `dtype` with dense weights; adapters stay unmerged. In place."""
    import torch

    dequantize_nf4(resident.model)
    for parameter in resident.model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))


@dataclass(frozen=True, slots=True)
class Grid:
    """How a quantized candidate stores its weights: `bits`, `group_size` input columns that share a scale
    (-1: all), symmetric or not.
    """

    bits: int
    group_size: int
    symmetric: bool

    @property
    def name(self) -> str:
        """For file names and keys."""
        return f"{self.bits}bit-{self.group_size}-{'sym' if self.symmetric else 'asym'}"

    @property
    def words(self) -> str:
        """For people."""
        group = "whole rows" if self.group_size < 1 else f"groups of {self.group_size}"
        kind = "symmetric" if self.symmetric else "asymmetric"
        return f"{self.bits} bits, {group}, {kind}"


def read_grid(quantization: dict[str, Any]) -> Grid | None:
    """Return the grid that a model's `quantization_config` tells (GPTQ and AWQ as gptqmodel and AutoAWQ write
    them, compressed-tensors with one group of layers); None where it tells none.
    """
    groups = list((quantization.get("config_groups") or {}).values())
    if len(groups) == 1 and isinstance(groups[0].get("weights"), dict):
        weights = groups[0]["weights"]
        bits, size = weights.get("num_bits"), weights.get("group_size") or -1
        symmetric = weights.get("symmetric", True)
    else:
        bits = quantization.get("bits", quantization.get("w_bit"))
        size = quantization.get("group_size", quantization.get("q_group_size", -1))
        symmetric = quantization.get("sym", not quantization.get("zero_point", False))
    return Grid(int(bits), int(size), bool(symmetric)) if isinstance(bits, int) and size else None


def steps_of(weight: Any, grid: Grid) -> Any:
    """Return the distance (out, groups) of two neighbouring values of each group: that of gptqmodel and
    AutoAWQ, its range over 2^bits - 1 steps. Groups that do not divide the weight (out, in) are whole rows.
    """
    low, high = _range(_groups(weight, grid), grid)
    return ((high - low) / (2**grid.bits - 1)).clamp_min(1e-12)[..., 0]


def round_to_nearest(weight: Any, grid: Grid) -> Any:
    """Return a weight (out, in) rounded to the nearest value of the grid: what a quantizer that looks at no
    data gives.
    """
    import torch

    groups, top = _groups(weight, grid), 2**grid.bits - 1
    low, _ = _range(groups, grid)
    scale = steps_of(weight, grid)[..., None]
    zero = torch.full_like(low, 2 ** (grid.bits - 1)) if grid.symmetric else torch.round(-low / scale)
    steps = (torch.round(groups / scale) + zero).clamp(0, top)
    return ((steps - zero) * scale).reshape(weight.shape).to(weight.dtype)


def _groups(weight: Any, grid: Grid) -> Any:
    out, width = weight.shape
    size = grid.group_size if 0 < grid.group_size <= width and width % grid.group_size == 0 else width
    return weight.float().reshape(out, width // size, size)


def _range(groups: Any, grid: Grid) -> tuple[Any, Any]:
    if grid.symmetric:
        high = groups.abs().amax(-1, keepdim=True)
        return -high, high
    return groups.amin(-1, keepdim=True).clamp_max(0), groups.amax(-1, keepdim=True).clamp_min(0)


def quantize_like(resident: Resident, arm: str, grid: Grid, layers: Collection[str], dtype: str) -> Resident:
    """Return the arm computing in `dtype`, with the named layers, their adapters merged, rounded to the grid.
    The resident's own weights become these: it is of no further use.
    """
    import torch

    dequantize_nf4(resident.model)
    with torch.no_grad(), resident.activate(arm) as model:
        for name, module in list(model.named_modules()):
            if name not in layers:
                continue
            weight = effective_weight(module)
            bias = getattr(getattr(module, "base_layer", module), "bias", None)
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
            linear.weight = torch.nn.Parameter(round_to_nearest(weight, grid), requires_grad=False)
            linear.bias = bias
            model.set_submodule(name, linear)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(getattr(torch, dtype))
    # Without PEFT's handle: setting the adapter there again would look for the layers that were replaced.
    return Resident(model, resident.tokenizer, {arm: None})


def effective_weight(module: Any) -> Any:
    """Return the matrix (out, in) that a layer multiplies by, found by asking it: of a linear layer, with or
    without a LoRA of any kind on it.
    """
    import torch

    layer = getattr(module, "base_layer", module)
    width = layer.weight.shape[0 if hasattr(layer, "nf") else 1]  # GPT-2's Conv1D stores (in, out)
    like = {"dtype": layer.weight.dtype, "device": layer.weight.device}
    bias = module(torch.zeros(1, width, **like))
    columns = []
    for start in range(0, width, _COLUMNS):
        some = torch.zeros(min(_COLUMNS, width - start), width, **like)
        some[:, start:].fill_diagonal_(1)
        columns.append(module(some) - bias)
    return torch.cat(columns).T.contiguous()
