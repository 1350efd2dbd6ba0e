"""The export stage: a plugin writes a model folder aside, and only a whole one takes its place."""

from __future__ import annotations

import errno
import secrets
import shutil
from pathlib import Path
from typing import Any

from lora_eval.errors import InputError, OutputError
from lora_eval.fingerprint import fingerprint_folder
from lora_eval.models import write_lineage
from lora_eval.protocols import Exporter, ExportRequest, Progress
from lora_eval.records import Lineage, Variant
from lora_eval.registry import get
from lora_eval.schema import suggest

# RLIMIT_FSIZE and some network disks say "file too large" where others say "no space left".
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def export(
    name: str,
    *,
    base: Path,
    adapter: Path | None,
    out: Path,
    options: dict[str, Any] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Lineage:
    """Export with the exporter `name` into the new or empty folder `out`; returns the stored lineage.

    Raises:
        PluginError: no such exporter.
        InputError: an option that the exporter does not have.
        OutputError: the folder is not empty or cannot be written, or the disk is full; nothing is left.
    """
    exporter: Exporter = get("exporter", name)
    options = {key: value for key, value in (options or {}).items() if value is not None}
    _check_options(exporter, options)
    check_empty(out)
    place = out.resolve()  # of a link, what it points to
    partial = place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir(parents=True)
        lineage = exporter.export(ExportRequest(base, adapter, partial, options, progress))
        lineage = _settle(exporter, lineage, partial, place)
        partial.replace(place)
    except OSError as error:
        raise OutputError(_said(error, out)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return lineage


def check_empty(out: Path) -> None:
    """Raise OutputError where the folder already holds something, or no other can take its place."""
    if out.is_file():
        raise OutputError(f"{out}: is a file; give a new folder as --out")
    if out.is_dir() and any(out.iterdir()):
        raise OutputError(f"{out}: is not empty; give a new folder as --out, or empty this one first")
    place = out.resolve()
    fixed = "this folder" if place == Path.cwd() else "a mount point" if place.is_mount() else None
    if fixed:
        raise OutputError(
            f"{out}: is {fixed}, and a model folder takes its place whole; give a new folder in it as --out"
        )


def _check_options(exporter: Exporter, options: dict[str, Any]) -> None:
    known = exporter.options
    for key in options:
        if key not in known:
            raise InputError(
                f"export {exporter.name}: has no option '{key}'{suggest(key, known)}; it knows: "
                f"{', '.join(known) or 'none'}"
            )


def _settle(exporter: Exporter, lineage: Lineage, partial: Path, out: Path) -> Lineage:
    """Store the lineage with the place where the folder will be; a plugin that named no variant gets one."""
    written = fingerprint_folder(partial)
    *before, last = lineage.variants
    if Path(last.path) != partial and last.kind != exporter.kind:
        before = [*before, last]
        made_by = f"lora-eval export {exporter.name}"
        last = Variant.model_validate({"kind": exporter.kind, "path": str(out), "made_by": made_by,
                                       "parent": last.fingerprint})  # fmt: skip
    last = last.model_copy(update={"path": str(out), "fingerprint": written})
    settled = lineage.model_copy(update={"variants": (*before, last)})
    write_lineage(partial, settled)
    return settled


def _said(error: OSError, out: Path) -> str:
    if error.errno in _FULL:
        return f"{out}: no space left on the disk; nothing was kept"
    return f"{out}: cannot be written: {error.strerror or error}"
