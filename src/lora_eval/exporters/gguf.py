"""`gguf`: a whole model in llama.cpp's format, made by llama.cpp's own converter where that is present."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from lora_eval.errors import InputError, MissingExtraError, ModelError, VerificationFailed
from lora_eval.exporters.quantize import finish
from lora_eval.exporters.workers import scratch_folder, worker_environment
from lora_eval.protocols import ExportRequest
from lora_eval.records import Lineage

SCRIPT = "convert_hf_to_gguf.py"
CONVERTER = "LORA_EVAL_GGUF_CONVERTER"
# What the script writes by itself; smaller integers are made from these by llama.cpp's `llama-quantize`.
TYPES = ("f32", "f16", "bf16", "q8_0")
_MAGIC = b"GGUF"


class GgufExporter:
    """A merged or base model becomes one GGUF file."""

    name = "gguf"
    kind = "gguf"
    options = ("outtype", "converter", "python", "verbose")

    def export(self, request: ExportRequest) -> Lineage:
        """Write the GGUF file; returns its lineage (see `Exporter.export`).

        Raises:
            MissingExtraError: there is no converter, or a package that it needs is missing.
            ModelError: the converter does not know this model or its tokenizer.
            VerificationFailed: it ended well and wrote no GGUF file.
        """
        started = time.perf_counter()
        options = request.options
        if request.adapter is not None:
            raise InputError("export gguf: takes a whole model; merge the adapter first (export merge)")
        outtype = str(options.get("outtype", "bf16"))
        if outtype not in TYPES:
            raise InputError(f"--outtype {outtype}: expected one of {', '.join(TYPES)}")
        converter = find_converter(options.get("converter"))
        file = request.out / f"model-{outtype}.gguf"
        python = options.get("python") or sys.executable
        _convert(
            [str(python), str(converter), str(request.base.absolute()), "--outfile", str(file.absolute()),
             "--outtype", outtype],
            bool(options.get("verbose")),
        )  # fmt: skip
        check_file(file)
        return finish(request, "gguf", {"outtype": outtype, "converter": str(converter)}, started)


def find_converter(given: Path | None) -> Path:
    """Return llama.cpp's script: the one given, that of $LORA_EVAL_GGUF_CONVERTER, or the one on the PATH.

    Raises:
        InputError: what was given is no file.
        MissingExtraError: there is none; says where it can be had.
    """
    named = given or os.environ.get(CONVERTER)
    if named:
        if not Path(named).is_file():
            raise InputError(f"--converter {named}: no such file; expected llama.cpp's {SCRIPT}")
        return Path(named).absolute()
    found = shutil.which(SCRIPT)
    if found is None:
        raise MissingExtraError(
            f"export gguf needs llama.cpp's {SCRIPT}, which no package installs; it lies in llama.cpp's "
            "repository (git clone https://github.com/ggml-org/llama.cpp) and in the source package of "
            "llama-cpp-python (pip download --no-deps --no-binary llama-cpp-python llama-cpp-python, then "
            "unpack vendor/llama.cpp), and itself needs: pip install sentencepiece. Give its path as "
            f"--converter or ${CONVERTER}, or put its folder on the PATH"
        )
    return Path(found)


def check_file(file: Path) -> None:
    """Raise VerificationFailed where the file is not there or does not begin as GGUF does."""
    if not file.is_file():
        raise VerificationFailed(f"the converter ended well and wrote no {file.name}")
    with file.open("rb") as opened:
        if opened.read(len(_MAGIC)) != _MAGIC:
            raise VerificationFailed(f"{file.name}: does not begin with GGUF's mark")


def _convert(command: list[str], verbose: bool) -> None:
    with scratch_folder("gguf") as scratch:
        # Its log goes to stderr; stdout belongs to --json.
        done = subprocess.run(
            command,
            stdout=subprocess.DEVNULL,
            stderr=None if verbose else subprocess.PIPE,
            env=worker_environment(scratch),
            cwd=scratch,
            text=True,
        )
    if not done.returncode:
        return
    said = (done.stderr or "").strip().splitlines()
    last = said[-1] if said else f"it ended with status {done.returncode}"
    if "ModuleNotFoundError" in last:
        raise MissingExtraError(
            f"llama.cpp's converter needs a package that is missing ({last}); install it for {command[0]}, "
            "or give another Python as --python"
        )
    raise ModelError(f"llama.cpp's converter cannot convert this model: {last}")
