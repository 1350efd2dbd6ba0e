"""The Python that llm-compressor runs in: given, or made once and kept for every later export."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from lora_eval.errors import InputError, MissingExtraError
from lora_eval.protocols import Progress

PINS = Path(__file__).with_name("llm_compressor.txt")
PYTHON = "LORA_EVAL_LLM_COMPRESSOR_PYTHON"
_SIZE = "1.5 GB with torch for CPUs, as measured; several times that with the CUDA build that PyPI gives"
_LOG_LINES = 8
_ASK = "import importlib.metadata as m; print(m.version('llmcompressor'))"


def default_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where the environment is kept: under $XDG_CACHE_HOME or ~/.cache, one for each set of pins and
    each Python.

    Raises:
        InputError: neither is set, and this user has no home folder.
    """
    try:
        cache = environment.get("XDG_CACHE_HOME")
        home = Path(cache) if cache else Path.home() / ".cache"
    except RuntimeError as error:
        raise InputError(f"no place for llm-compressor: {error} Set $XDG_CACHE_HOME to a folder") from error
    digest = hashlib.sha256(PINS.read_bytes()).hexdigest()[:12]
    return home / "lora-eval" / f"llm-compressor-{digest}-py{sys.version_info.major}{sys.version_info.minor}"


def announcement(given: Path | None) -> str | None:
    """Return what an export will install and how big it is; None where nothing is to be installed."""
    if _given(given) is not None or _python(default_folder()).is_file():
        return None
    return (
        f"llm-compressor will be installed into an environment of its own, once: {default_folder()} "
        f"({_SIZE}); to use one that you have, give its Python as --python or ${PYTHON}"
    )


def find_python(given: Path | None, progress: Progress) -> Path:
    """Return a Python that has llm-compressor: the one given, that of $LORA_EVAL_LLM_COMPRESSOR_PYTHON, or
    that of the kept environment, which is made where it is not there.

    Raises:
        InputError: the Python given cannot be run.
        MissingExtraError: it has no llm-compressor, or pip cannot install it.
    """
    chosen = _given(given)
    if chosen is not None:
        _check(chosen)
        return chosen
    folder = default_folder()
    if not _python(folder).is_file():
        progress(f"installing llm-compressor into {folder}", 0, 1)
        _make(folder)
    return _python(folder)


def _given(given: Path | None) -> Path | None:
    named = os.environ.get(PYTHON)
    return given if given is not None else Path(named) if named else None


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _check(python: Path) -> None:
    try:
        done = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"--python {python}: cannot be run ({error}); expected a Python program") from error
    if done.returncode:
        raise MissingExtraError(
            f"--python {python}: has no llm-compressor; install it there with: {python} -m pip install "
            f"-r {PINS}"
        )


def _make(folder: Path) -> None:
    """Make the environment aside and move it when it is whole: a Python in it finds its packages by its own
    place, so moving does no harm.
    """
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        _run([sys.executable, "-m", "venv", str(partial)])
        _run([str(_python(partial)), "-m", "pip", "install", "--quiet", "--no-input", "-r", str(PINS)])
        partial.rename(folder)
    except OSError as error:
        if not _python(folder).is_file():  # else another process was first
            raise InputError(f"{folder}: llm-compressor cannot be installed: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-_LOG_LINES:]
        raise MissingExtraError(
            f"llm-compressor cannot be installed: {' '.join(command)} ended with status {done.returncode}; "
            f"make an environment of your own with {PINS} and give its Python as --python or ${PYTHON}\n"
            + "\n".join(said)
        )
