"""Where devices differ: the borders between 4-bit codes, and the scales of blocks after double quantization
(QLoRA, arXiv 2305.14314, section 3).

bitsandbytes 0.50.2 gives a scale less their mean one of 256 codes. Its CPU code first rounds to one of 65,536
places (`csrc/cpu_ops.cpp`): 0.1 % of the scales of random weights get a neighbour of the nearest code. Its
GPU code searches (`dQuantize` in `csrc/kernels.cu`), after a product with a reciprocal that the GPU
approximates (`--use_fast_math`: MUFU.RCP in the compiled kernels), to within one unit in the last place.
"""

from __future__ import annotations

from itertools import islice, product
from typing import Any

from lora_eval.exporters.pieces import InOrder, one_by_one, row_ranges

_GROUP = 256  # scales that share one scale of their own
# dQuantizeNF4 and, by magnitude, dQuantizeFP4 in bitsandbytes' csrc/kernels.cu (MIT).
_NF4 = (
    -0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544, -0.23460740596055984,
    -0.13791173323988914, -0.045525018125772476, 0.03979014977812767, 0.1202552504837513, 0.2035212516784668,
    0.2920137718319893, 0.3893125355243683, 0.5016634166240692, 0.6427869200706482, 0.8614784181118011,
)  # fmt: skip
_FP4 = (0.00260417, 0.0859375, 0.20833333, 0.29166667, 0.4166667, 0.583333, 0.8333333)
_MOST = 27  # candidates that are worth trying: three groups that a last place decides


def borders(quant_type: str, *, gpu: bool) -> tuple[list[float], Any]:
    """Return the 15 borders between ascending codes, and the codes' 16 values (float32). A number on a border
    belongs to the lower code.
    """
    import torch
    from bitsandbytes.backends.default import ops

    bounds, order = ops._get_4bit_quantize_bounds(quant_type, torch.device("cpu"))
    values = ops._get_4bit_code(quant_type, torch.device("cpu"))[order].float()
    if gpu and quant_type == "nf4":
        bounds = torch.tensor(_NF4)
    elif gpu:
        positive = torch.tensor(_FP4)
        # By magnitude: a negative number on a border is the one nearer to 0, and 0 itself is positive.
        negative = torch.cat([-positive.flip(0), torch.zeros(1)]).nextafter(torch.tensor(-torch.inf))
        bounds = torch.cat([negative, positive])
        values = values.abs() * torch.tensor([-1.0] * 8 + [1.0] * 8)
    return [float(bound) for bound in bounds], values


def cpu_scales(largest: Any, offset: float | None = None) -> Any:
    """Return each block's scale as the CPU's layers hold it; `offset` is the mean of `largest`, if known."""
    from bitsandbytes import functional

    mean = _mean(largest, offset)
    packed, state = functional.quantize_blockwise(largest - mean, blocksize=_GROUP)
    return functional.dequantize_blockwise(packed, state).add_(mean)


def gpu_scales(largest: Any, offset: float | None = None, in_order: InOrder = one_by_one) -> list[Any]:
    """Return what a GPU's layers may hold: first with exact reciprocals, then (at most 26 more) with those of
    groups one unit in the last place off, where that changes a code.
    """
    import torch
    from bitsandbytes import functional

    mean = _mean(largest, offset)
    code = functional.create_dynamic_map().to(torch.float32)
    groups = torch.nn.functional.pad(largest - mean, (0, -len(largest) % _GROUP)).view(-1, _GROUP)
    peak = groups.abs().amax(dim=1, keepdim=True)
    exact = 1.0 / peak

    def work(first: int, end: int) -> tuple[Any, Any]:
        values = groups[first:end] * exact[first:end]
        found = nearest_codes(values, code)
        return found, _near_a_border(values, found, code).any(dim=1)

    pieces = list(in_order(work, row_ranges(len(groups), _GROUP)))
    codes, near = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    open_groups = near.nonzero().flatten()
    found = [codes]
    for chosen in islice(product(*_variants(groups[open_groups], exact[open_groups], code)), _MOST):
        other = codes.clone()
        for group, values in zip(open_groups, chosen, strict=True):
            other[group] = values
        found += [] if torch.equal(other, codes) else [other]
    return [(code[each] * peak).view(-1)[: len(largest)] + mean for each in found]


def _variants(groups: Any, exact: Any, code: Any) -> list[list[Any]]:
    """Return of each group the rows of codes that the exact reciprocal and its two neighbours give."""
    import torch

    ways = [exact, *(exact.nextafter(torch.full_like(exact, end)) for end in (0.0, torch.inf))]
    codes = torch.stack([nearest_codes(groups * way, code) for way in ways], dim=1)
    return [list(each.unique(dim=0)) for each in codes]


def nearest_codes(values: Any, code: Any) -> Any:
    """Return the index of the nearest of the ascending codes as `dQuantize` finds it: between two equally
    near the even index, where its search ends.
    """
    import torch

    middles = (code[1:] + code[:-1]) * 0.5
    found = torch.bucketize(values, middles)
    tie = values == middles[found.clamp(max=len(middles) - 1)]
    return found + (tie & (found % 2 == 1))


def _near_a_border(values: Any, codes: Any, code: Any) -> Any:
    """Whether a last place may decide: a border lies within 4 * 2^-24 of the value."""
    import torch

    middles = torch.nn.functional.pad((code[1:] + code[:-1]) * 0.5, (1, 1), value=torch.inf)
    distance = torch.minimum((values - middles[codes]).abs(), (values - middles[codes + 1]).abs())
    return distance <= values.abs() * 2.0**-22


def _mean(largest: Any, offset: float | None) -> Any:
    return largest.mean() if offset is None else largest.new_tensor(offset)
