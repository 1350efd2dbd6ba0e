"""What `gptq` and `awq` share: settings checked before anything heavy, rows, the finished folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_eval.errors import InputError, ModelError
from lora_eval.exporters.base_files import linear_inputs
from lora_eval.exporters.calibration import (
    RECIPE,
    calibration_files,
    calibration_ids,
    choose_rows,
    row_messages,
)
from lora_eval.exporters.carry import carry_files, carry_rest, carry_tokenizer
from lora_eval.exporters.overlap import check_held_out
from lora_eval.exporters.steps import extend, lineage_of
from lora_eval.fingerprint import fingerprint_data, sha256_file
from lora_eval.models.locate import read_config
from lora_eval.protocols import ExportRequest
from lora_eval.records import Lineage, VariantKind

# What gptqmodel 7.6.0, llm-compressor 0.14 and vLLM all take; 256 and more are rare, 16 is refused by vLLM's
# kernels.
GROUP_SIZES = (128, 64, 32)
BITS = (4, 8)
OPTIONS = (
    "bits", "group_size", "sym", "calibration", "held_out", "samples", "max_length", "seed", "verbose",
)  # fmt: skip
_WHOLE_ROWS = {
    "gptq": "gptqmodel refuses it (its order of columns, act_group_aware, needs groups)",
    "awq": "AWQ takes the sizes that GPTQ takes, so that one model in both forms can be compared",
}
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Calibration:
    """Rows of token ids, the files that they were drawn from, and how many items of which benchmark tasks
    are known not to be among them.
    """

    files: list[Path]
    rows: list[list[int]]
    held_out: dict[str, int]

    def arguments(self) -> dict[str, Any]:
        """Return what the lineage says about them."""
        return {
            "calibration_rows": len(self.rows),
            "calibration_tokens": sum(map(len, self.rows)),
            "calibration_files": [str(path) for path in self.files],
            "calibration": fingerprint_data([sha256_file(path) for path in self.files]),
            "calibration_held_out": self.held_out,
        }


def check_settings(request: ExportRequest, method: str) -> dict[str, Any]:
    """Return the settings that both methods have, from the files alone: nothing is loaded.

    Raises:
        InputError: an adapter, or a number that is not offered.
        ModelError: already quantized, or a layer's input size is no multiple of the group size.
    """
    options = request.options
    if request.adapter is not None:
        raise InputError(f"export {method}: takes a whole model; merge the adapter first (export merge)")
    stored = read_config(request.base, "config.json").get("quantization_config")
    if stored:
        raise ModelError(
            f"{request.base}: is already quantized ({stored.get('quant_method', 'unknown')}); give the "
            "merged 16-bit model"
        )
    bits = int(options.get("bits", 4))
    if bits not in BITS:
        raise InputError(f"--bits {bits}: expected 4 or 8, what gptqmodel, llm-compressor and vLLM all take")
    asked = options.get("group_size")
    check_group_size(None if asked is None else int(asked), method)
    return {
        "bits": bits,
        "group_size": choose_group_size(
            request.base, linear_inputs(request.base), None if asked is None else int(asked)
        ),
        "sym": bool(options.get("sym", True)),
        "samples": int(options.get("samples", 256)),
        "max_length": int(options.get("max_length", 2048)),
        "seed": int(options.get("seed", 0)),
    }


def check_group_size(asked: int | None, method: str) -> None:
    """Raise InputError for a size that is not offered for any model."""
    sizes = ", ".join(map(str, sorted(GROUP_SIZES)))
    if asked == -1:
        raise InputError(
            f"--group-size -1: one scale for a whole row is not offered: {_WHOLE_ROWS[method]}; expected one "
            f"of {sizes}"
        )
    if asked is not None and asked not in GROUP_SIZES:
        raise InputError(f"--group-size {asked}: expected one of {sizes}")


def choose_group_size(model: Path, inputs: dict[str, int], asked: int | None) -> int:
    """Return the group size asked for, else the largest usual one that divides every layer's input size.

    Raises:
        ModelError: it, or each of them, leaves a remainder; names the layers and the sizes that would fit.
    """
    fitting = [size for size in GROUP_SIZES if not any(width % size for width in inputs.values())]
    if asked is None and fitting:
        return fitting[0]
    if asked in fitting and asked is not None:
        return asked
    tried = asked or min(GROUP_SIZES)
    wrong = {name: width for name, width in inputs.items() if width % tried}
    listed = ", ".join(f"{name} ({width})" for name, width in list(wrong.items())[:_SHOWN])
    more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    advice = (
        f"group sizes that fit every layer: {', '.join(map(str, fitting))}"
        if fitting
        else f"no usual group size ({', '.join(map(str, GROUP_SIZES))}) fits every layer, so this "
        "model cannot be quantized in groups; ship the merged model"
    )
    raise ModelError(
        f"{model}: group size {tried} does not divide the input size of {len(wrong)} layers: "
        f"{listed}{more}; {advice}"
    )


def few_tokens(calibration: Calibration, inputs: Mapping[str, int]) -> list[str]:
    """Return a note where fewer tokens calibrate than the widest layer has input columns: the matrix X X^T
    that GPTQ inverts (arXiv 2210.17323, equation 3) has then no full rank, and only damping tells columns
    apart.
    """
    tokens, widest = sum(map(len, calibration.rows)), max(inputs.values(), default=0)
    if tokens >= widest:
        return []
    return [
        f"only {tokens} tokens calibrate layers of up to {widest} input columns: give more rows "
        "(--calibration, --samples)"
    ]


def calibrate(request: ExportRequest, settings: dict[str, Any]) -> Calibration:
    """Return the calibration rows of the file given, else of the training data (see `calibration_files`).

    Raises:
        DataError: a row holds a benchmark item of `held_out` (texts by task), or a file cannot be read.
    """
    files = calibration_files(request.base, request.options.get("calibration"))
    rows = choose_rows(files, settings["samples"], settings["seed"])
    held_out: Mapping[str, Sequence[str]] = request.options.get("held_out") or {}
    check_held_out([row_messages(row) for row in rows], held_out)
    ids = calibration_ids(request.base, rows, settings["max_length"])
    return Calibration(files, ids, {task: len(texts) for task, texts in held_out.items()})


def finish(request: ExportRequest, kind: VariantKind, arguments: dict[str, Any], started: float) -> Lineage:
    """Put the model's tokenizer, settings and recipe beside the quantized weights; returns the lineage."""
    model = request.base
    carry_tokenizer([model], request.out)
    carry_rest([model], request.out)
    carry_files(model, request.out, (RECIPE,))
    seconds = time.perf_counter() - started
    return extend(lineage_of(model, None), request, kind=kind, arguments=arguments, seconds=seconds)
