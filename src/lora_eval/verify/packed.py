"""GPTQ weights as the numbers that their integers stand for: scale * (integer - zero point).

The layout is that of AutoGPTQ and gptqmodel: `qweight` holds 32 / bits input columns in each int32 (down its
rows), `qzeros` as many outputs (along its rows), and `g_idx` the group of each input column. Files of the
format `gptq` store each zero point less one, those of `gptq_v2` as it is (gptqmodel 7.6.0,
`utils/model.py`, `convert_gptq_v1_to_v2_format_module`).
"""

from __future__ import annotations

from typing import Any

from lora_eval.verify.arithmetic import read_grid
from lora_eval.verify.expected import StoredTensors

# What GPTQ and AWQ, and compressed-tensors, store a weight as, and what must stand beside it.
PACKED = {".qweight": ("qzeros", "scales"), ".weight_packed": ("weight_scale",)}
_BITS = (2, 4, 8)  # the widths of which none lies across two int32


class GptqTensors:
    """The quantized layers of a GPTQ folder; none where its layout is another one."""

    def __init__(self, stored: StoredTensors, quantization: dict[str, Any]) -> None:
        self._stored = stored
        self._less_one = quantization.get("checkpoint_format", "gptq") == "gptq"
        grid = read_grid(quantization)
        known = quantization.get("quant_method") == "gptq" and grid is not None and grid.bits in _BITS
        self.grid = grid if known and quantization.get("pack_dtype", "int32") == "int32" else None

    def holds(self, module: str) -> bool:
        """Return whether the layer's weight can be read."""
        return self.grid is not None and f"{module}.qweight" in self._stored.infos

    def shape(self, module: str) -> tuple[int, int]:
        """Return the weight's (out, in)."""
        assert self.grid is not None
        rows, out = self._stored.infos[f"{module}.qweight"].shape
        return out, rows * (32 // self.grid.bits)

    def weight(self, module: str) -> Any:
        """Return the weight (out, in) in float32."""
        import torch

        grid = self.grid
        if grid is None:
            raise ValueError("a layout that is not known")
        packed = self._stored.read(f"{module}.qweight")
        shifts = torch.arange(0, 32, grid.bits, dtype=torch.int32)
        top = 2**grid.bits - 1
        integers = ((packed[:, None, :] >> shifts[:, None]) & top).reshape(-1, packed.shape[1])
        zeros = self._stored.read(f"{module}.qzeros").long()
        if self._less_one:  # taken off the whole int32, so that a zero point of 0 has borrowed from the next
            zeros += int((1 << shifts.long()).sum())
        points = ((zeros[:, :, None] >> shifts.long()) & top).reshape(len(zeros), -1)
        scales = self._stored.read(f"{module}.scales").float()
        group = self._groups(module, len(integers))
        return (scales[group] * (integers - points[group, : scales.shape[1]]).float()).T.contiguous()

    def _groups(self, module: str, width: int) -> Any:
        import torch

        if f"{module}.g_idx" in self._stored.infos:
            return self._stored.read(f"{module}.g_idx").long()
        assert self.grid is not None
        return torch.arange(width) // (self.grid.group_size if self.grid.group_size > 0 else width)
