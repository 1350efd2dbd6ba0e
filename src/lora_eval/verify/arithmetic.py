"""The reference's own weights in another arithmetic: how much rounding alone changes its answers."""

from __future__ import annotations

from typing import Any

from lora_eval.models import Resident


def floor_dtype(reference: str, candidate: str) -> str:
    """Return the dtype of the noise floor: the candidate's where it differs from the reference's, else the
    next wider one.
    """
    if candidate != reference:
        return candidate
    return "float64" if reference == "float32" else "float32"


def dequantize(resident: Resident) -> None:
    """Replace NF4 layers by linear layers with their dequantized values, in place. On a CPU the logits stay
    equal in every bit (the layer itself dequantizes and multiplies), several times as fast.
    """
    from bitsandbytes.nn import Linear4bit

    for name, module in list(resident.model.named_modules()):
        if isinstance(module, Linear4bit):
            resident.model.set_submodule(name, _dense(module))


def convert(resident: Resident, dtype: str) -> None:
    """From now on the arm computes in `dtype` with dense weights; adapters stay unmerged. In place."""
    import torch

    dequantize(resident)
    for parameter in resident.model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))


def _dense(module: Any) -> Any:
    """Return a linear layer with the values that the quantized one multiplies by (see `RoundTrip`)."""
    import torch

    from lora_eval.exporters.round_trip import dequantized

    weight = dequantized(module)
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=module.bias is not None, device="meta")
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    if module.bias is not None:
        linear.bias = torch.nn.Parameter(module.bias.data, requires_grad=False)
    return linear
