"""What an adapted linear layer adds to its base layer, where that is plain LoRA and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class AdaptedLayer:
    """A layer under the arm that is live now: `base(x)`, and `scaling * B(A(x))` where there is a delta.

    `a` has the shape (r, in), `b` (out, r); both are None where the arm leaves the layer as the base has it.
    """

    base: Any
    a: Any = None
    b: Any = None
    scaling: float = 1.0


def adapted_layer(module: Any) -> AdaptedLayer | None:
    """Return what PEFT's layer computes outside training; None where it is no linear layer with plain LoRA
    (DoRA and other variants, several live adapters, a bias in B, merged weights).
    """
    if not hasattr(module, "lora_A"):
        return None
    from peft.tuners.lora import Linear

    if type(module) is not Linear or module.merged or module.training:
        return None
    live = [name for name in module.active_adapters if name in module.lora_A]
    if module.disable_adapters or not live:
        return AdaptedLayer(module.base_layer)
    if len(live) > 1 or live[0] in module.lora_variant or module.lora_B[live[0]].bias is not None:
        return None
    name = live[0]
    return AdaptedLayer(
        module.base_layer,
        module.lora_A[name].weight,
        module.lora_B[name].weight,
        float(module.scaling[name]),
    )
