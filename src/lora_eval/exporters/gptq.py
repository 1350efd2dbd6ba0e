"""`gptq`: a whole model quantized with gptqmodel, in the form that vLLM serves.

gptqmodel runs in a process of its own (`gptq_worker`): importing it sets HF_HOME, CUDA_DEVICE_ORDER,
PYTORCH_ALLOC_CONF and more for the whole process, adds a handler to the root logger and starts threads that
stay (seen with 7.6.0), which the stages before and after would inherit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from lora_eval.errors import InputError, LoraEvalError, MissingExtraError, ModelError
from lora_eval.exporters.base_files import linear_inputs
from lora_eval.exporters.calibration import RECIPE, calibration_files, calibration_rows
from lora_eval.exporters.carry import carry_files, carry_rest, carry_tokenizer
from lora_eval.exporters.steps import extend, lineage_of
from lora_eval.fingerprint import fingerprint_data, sha256_file
from lora_eval.models.locate import read_config
from lora_eval.protocols import ExportRequest
from lora_eval.records import Lineage

# What gptqmodel 7.6.0 and vLLM both take; 256 and more are rare, 16 is refused by vLLM's kernels.
GROUP_SIZES = (128, 64, 32)
BITS = (4, 8)
_SHOWN = 5
_LOG_LINES = 15


class GptqExporter:
    """A merged or base model becomes a 4-bit one."""

    name = "gptq"
    kind = "gptq"
    options = ("bits", "group_size", "calibration", "samples", "max_length", "seed", "verbose")

    def export(self, request: ExportRequest) -> Lineage:
        """Write the quantized model; returns its lineage (see `Exporter.export`).

        Raises:
            MissingExtraError: gptqmodel is not installed.
            ModelError: already quantized, or a layer's input size is no multiple of the group size.
        """
        started = time.perf_counter()
        require_gptqmodel()
        if request.adapter is not None:
            raise InputError("export gptq: takes a whole model; merge the adapter first (export merge)")
        settings = _settings(request)
        model = request.base
        files = calibration_files(model, request.options.get("calibration"))
        rows = calibration_rows(
            model,
            files,
            samples=settings["samples"],
            max_length=settings["max_length"],
            seed=settings["seed"],
        )
        modules = _quantize(request, settings, rows)
        _normalise(request.out)
        carry_tokenizer([model], request.out)
        carry_rest([model], request.out)
        carry_files(model, request.out, (RECIPE,))
        arguments = settings | {
            "modules_quantized": modules,
            "calibration_rows": len(rows),
            "calibration_tokens": sum(map(len, rows)),
            "calibration_files": [str(path) for path in files],
            "calibration": fingerprint_data([sha256_file(path) for path in files]),
        }
        seconds = time.perf_counter() - started
        return extend(lineage_of(model, None), request, kind="gptq", arguments=arguments, seconds=seconds)


def require_gptqmodel() -> None:
    """Raise MissingExtraError where gptqmodel or optimum is not installed; imports neither."""
    missing = [name for name in ("gptqmodel", "optimum") if not _installed(name)]
    if missing:
        raise MissingExtraError(
            f"export gptq needs {' and '.join(missing)}; install with: pip install 'lora-eval[gptq]'"
        )


def choose_group_size(model: Path, inputs: dict[str, int], asked: int | None) -> int:
    """Return the group size asked for, else the largest usual one that divides every layer's input size.

    Raises:
        ModelError: it, or each of them, leaves a remainder; names the layers and the sizes that would fit.
    """
    fitting = [size for size in GROUP_SIZES if not any(width % size for width in inputs.values())]
    if asked is None and fitting:
        return fitting[0]
    if asked is not None and asked not in GROUP_SIZES:
        raise InputError(f"--group-size {asked}: expected one of {', '.join(map(str, sorted(GROUP_SIZES)))}")
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
        "model cannot be quantized with GPTQ; ship the merged model"
    )
    raise ModelError(
        f"{model}: group size {tried} does not divide the input size of {len(wrong)} layers: "
        f"{listed}{more}; {advice}"
    )


def _installed(name: str) -> bool:
    # Not importlib.util.find_spec: it says no for a module that is hidden by a None in sys.modules, as
    # gptqmodel is while an adapter is trained.
    return PathFinder.find_spec(name) is not None


def _settings(request: ExportRequest) -> dict[str, Any]:
    options = request.options
    config = read_config(request.base, "config.json")
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise ModelError(f"{request.base}: is already quantized ({method}); give the merged 16-bit model")
    bits = int(options.get("bits", 4))
    if bits not in BITS:
        raise InputError(f"--bits {bits}: expected 4 (which vLLM serves) or 8")
    asked = options.get("group_size")
    group_size = choose_group_size(request.base, linear_inputs(request.base), int(asked) if asked else None)
    return {
        "bits": bits,
        "group_size": group_size,
        "sym": True,
        "desc_act": False,
        "samples": int(options.get("samples", 256)),
        "max_length": int(options.get("max_length", 2048)),
        "seed": int(options.get("seed", 0)),
    }


def _quantize(request: ExportRequest, settings: dict[str, Any], rows: list[list[int]]) -> int:
    """Run the worker; returns how many modules it quantized and found again in the saved model."""
    with tempfile.TemporaryDirectory(prefix="lora-eval-gptq-") as scratch:
        task = Path(scratch) / "task.json"
        # Absolute: the worker runs in another folder, and would take a relative path for a Hub repository.
        folders = {"model": str(request.base.absolute()), "out": str(request.out.absolute())}
        values = folders | {"settings": settings, "rows": rows}
        task.write_text(json.dumps(values), "utf-8")
        log = Path(scratch) / "log.txt"
        with (
            log.open("wb") as sink,
            subprocess.Popen(
                [sys.executable, "-m", "lora_eval.exporters.gptq_worker", str(task)],
                stdout=subprocess.PIPE,
                stderr=None if request.options.get("verbose") else sink,
                env=_environment(Path(scratch)),
                cwd=scratch,
                text=True,
            ) as worker,
        ):
            try:
                answer = _follow(worker.stdout or (), request)
                status = worker.wait()
            finally:
                if worker.poll() is None:
                    worker.kill()
        if status or "modules" not in answer:
            raise _failure(answer, log, status)
    return int(answer["modules"])


def _follow(lines: Iterable[str], request: ExportRequest) -> dict[str, Any]:
    """Pass the worker's progress on; returns its last words."""
    answer: dict[str, Any] = {}
    for line in lines:
        event = json.loads(line)
        if "layer" in event:
            request.progress("quantizing", event["layer"], event["layers"])
        else:
            answer = event
    return answer


def _failure(answer: dict[str, Any], log: Path, status: int) -> LoraEvalError:
    if "error" in answer:
        return ModelError(f"gptqmodel cannot quantize this model: {answer['error']}")
    tail = "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-_LOG_LINES:])
    return LoraEvalError(f"gptqmodel ended with status {status}:\n{tail}")


def _environment(scratch: Path) -> dict[str, str]:
    """The worker's environment: gptqmodel reads these once, on import."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        # With two cores its default is one worker, and loading then asks for two and fails.
        "GPTQMODEL_CPU_WORKERS": str(max(2, min(cores, 8))),
        # Packing in torch: its C++ extension is compiled on first use, 60 s of CPU where there is a compiler.
        "GPTQMODEL_DISABLE_PACK_EXT": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TMPDIR": str(scratch),
        "PYTHONPATH": os.pathsep.join(part for part in path if part),
        "HF_HUB_OFFLINE": "1",
    }


def _normalise(out: Path) -> None:
    """Take away what differs from run to run: gptqmodel stores the temporary folder that it used."""
    for name, keys in (("quantize_config.json", ()), ("config.json", ("quantization_config",))):
        path = out / name
        if not path.is_file():
            continue
        data = json.loads(path.read_text("utf-8"))
        section = data
        for key in keys:
            section = section.get(key, {})
        (section.get("meta") or {}).pop("offload_to_disk_path", None)
        data.pop("_name_or_path", None)
        path.write_text(json.dumps(data, indent=2, ensure_ascii=False, sort_keys=True) + "\n", "utf-8")
