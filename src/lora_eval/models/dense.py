"""GPTQ and NF4 weights as ordinary linear layers: a CPU kernel dequantizes at every forward pass anyway."""

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


def nf4_layers(model: Any) -> dict[str, Any]:
    """Return bitsandbytes' 4-bit layers by their paths in the model."""
    from bitsandbytes.nn import Linear4bit

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def dequantized_nf4(module: Any) -> Any:
    """Return the weight (out, in) of a `Linear4bit` that was not repacked, as its forward pass uses it.

    As one row: on AVX512 bitsandbytes 0.50.2 takes the scales of wrong blocks where a row has a multiple of
    16 columns but not of 64 (48, 80, 96, 176, ...; errors 4 times those of NF4). Its GPU code does not.
    """
    import copy

    import torch
    from bitsandbytes import functional

    state = copy.copy(module.weight.quant_state)
    if module.compute_dtype is not None:
        state.dtype = module.compute_dtype
    shape, state.shape = state.shape, torch.Size((1, state.shape.numel()))
    return functional.dequantize_4bit(module.weight.data, state).view(shape)


def dequantize_nf4(model: Any) -> int:
    """Replace every NF4 layer by a linear one with the values that it multiplies by; returns how many.

    Where the layer's input has its compute dtype, logits on a CPU stay equal in every bit, but for rows of
    those widths that bitsandbytes gets wrong there (`dequantized_nf4`).
    """
    import torch

    layers = nf4_layers(model)
    for name, module in layers.items():
        weight = dequantized_nf4(module)
        linear = torch.nn.Linear(
            weight.shape[1], weight.shape[0], bias=module.bias is not None, device="meta"
        )
        linear.weight = torch.nn.Parameter(weight, requires_grad=False)
        if module.bias is not None:
            linear.bias = torch.nn.Parameter(module.bias.data, requires_grad=False)
        model.set_submodule(name, linear)
    return len(layers)


def fits_dense(model: Any) -> bool:
    """Whether dense NF4 layers change no number and take at most a quarter of the free memory."""
    import psutil

    layers = nf4_layers(model).values()
    if not layers or any(module.weight.device.type != "cpu" for module in layers):
        return False
    same = all(module.compute_dtype in (None, model.dtype) for module in layers)
    needed = sum(module.weight.quant_state.shape.numel() for module in layers) * model.dtype.itemsize
    return same and needed <= psutil.virtual_memory().available // 4
