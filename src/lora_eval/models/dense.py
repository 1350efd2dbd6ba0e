"""GPTQ weights as ordinary linear layers: on a CPU the kernels dequantize at every forward pass anyway."""

from __future__ import annotations

from typing import Any


def dequantize_for_cpu(model: Any) -> tuple[str, ...]:
    """Replace each packed linear layer on a CPU by a plain one with its dequantized weight.

    The same product of the same values, without unpacking 4-bit integers anew for every batch. Layers are
    recognised by what they can do (`dequantize_weight` and `qweight`), not by their library's class.
    Returns a note for the report; empty where there was nothing to replace.
    """
    import torch

    replaced = 0
    for name, module in list(model.named_modules()):
        if not (hasattr(module, "dequantize_weight") and hasattr(module, "qweight")):
            continue
        if module.qweight.device.type != "cpu":
            continue
        with torch.no_grad():
            # The class's own method: gptqmodel puts a torch.compile of it on every instance, which for 42
            # small layers cost 150 s of compiling (and needs a C++ compiler) to be called once each.
            weight = type(module).dequantize_weight(module).T.contiguous().to(model.dtype)  # (out, in)
            bias = getattr(module, "bias", None)
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
            linear.weight = torch.nn.Parameter(weight, requires_grad=False)
            if bias is not None:
                linear.bias = torch.nn.Parameter(bias.to(model.dtype), requires_grad=False)
        model.set_submodule(name, linear)
        replaced += 1
    if not replaced:
        return ()
    dtype = str(model.dtype).removeprefix("torch.")
    return (f"{replaced} quantized layers evaluated with their dequantized weights in {dtype}",)
