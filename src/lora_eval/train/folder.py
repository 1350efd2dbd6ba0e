"""The output folder: claimed once, resumed by the same run only, and never holding half an adapter.

While a run goes on the folder holds `checkpoints/` and `.unfinished/`. At the end the finished files move out
of `.unfinished/`, `adapter_config.json` last: without it no library takes the folder for an adapter.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lora_eval.errors import OutputError, RecordError
from lora_eval.schema import load_json, write_text
from lora_eval.train.checkpoints import newest_whole, remove_broken

_LAST = "adapter_config.json"
_WORDS = {
    "recipe": "recipe (with its overrides)",
    "base": "base",
    "data": "training data",
    "template": "chat template",
    "processes": "number of processes",
}


class OutputFolder:
    """One run's folder. Used by the first process only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.unfinished = path / ".unfinished"
        self._marker = self.checkpoints / "run.json"
        self._created = not path.exists()

    def check(self) -> None:
        """Raise OutputError where the folder cannot become a run's: it holds a finished adapter, or other
        things than an unfinished run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"{self.path}: is a file; --out takes a folder")
        finished = (self.path / _LAST).exists()
        if not finished and self._marker.is_file():
            return
        if self.path.exists() and any(self.path.iterdir()):
            held = "holds a finished adapter" if finished else "is not empty"
            raise OutputError(f"{self.path}: the output folder {held}; give another --out, or remove it")

    def claim(self, identity: dict[str, str]) -> Path | None:
        """Make the folder this run's own; returns the checkpoint to resume from, or None for a new run.

        Raises:
            OutputError: it holds something else, a finished adapter, or another run's checkpoints.
        """
        self.check()
        if self._marker.is_file():
            self._same_run(identity)
            shutil.rmtree(self.unfinished, ignore_errors=True)
            return newest_whole(self.checkpoints)
        try:
            write_text(self._marker, json.dumps(identity, indent=2) + "\n")
        except OutputError:
            self.clean_up()
            raise
        return None

    def need(self, needed: int) -> None:
        """Raise OutputError where the disk has fewer bytes left than the run will write."""
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise OutputError(
                f"{self.path}: not enough space on the disk: the adapter and its checkpoints need about "
                f"{needed / 2**20:.1f} MiB, {free / 2**20:.1f} MiB are left"
            )

    def finish(self, *, keep_checkpoints: bool) -> None:
        """Move the finished files into place, and remove what only an unfinished run needs."""
        _make_readable(self.unfinished)
        for path in sorted(self.unfinished.iterdir(), key=lambda path: (path.name == _LAST, path.name)):
            target = self.path / path.name
            if target.is_dir():
                shutil.rmtree(target)
            path.replace(target)
        self.unfinished.rmdir()
        if not keep_checkpoints:
            shutil.rmtree(self.checkpoints)

    def clean_up(self) -> bool:
        """After a failure: keep whole checkpoints and nothing else; returns whether there are any."""
        shutil.rmtree(self.unfinished, ignore_errors=True)
        if (self.path / _LAST).exists():
            return False
        remove_broken(self.checkpoints)
        if newest_whole(self.checkpoints) is not None:
            return True
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        if self._created and self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()
        return False

    def _same_run(self, identity: dict[str, str]) -> None:
        try:
            found = load_json(self._marker)
        except RecordError as error:
            raise OutputError(f"{error}; remove {self.path} or give another --out") from error
        changed = [words for key, words in _WORDS.items() if found.get(key) != identity.get(key)]
        if changed:
            raise OutputError(
                f"{self.path}: holds an unfinished run with another {' and another '.join(changed)}; "
                "give what it was started with to resume it, or another --out"
            )


def _make_readable(folder: Path) -> None:
    """Give every file the rights that the umask says: safetensors leaves its own for the owner only."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)


@contextlib.contextmanager
def naming_disk_faults(folder: Path) -> Iterator[None]:
    """Within this, a write that fails for want of space (whatever library says it) is an OutputError."""
    try:
        yield
    except Exception as error:
        if _is_disk_fault(error):
            raise OutputError(f"{folder}: no space left on the disk while writing: {error}") from error
        raise


def _is_disk_fault(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    text = str(error)
    # safetensors and tokenizers say it in their own words, torch's archive writer not at all.
    return any(
        words in text
        for words in ("No space left on device", "File too large", "PytorchStreamWriter failed writing")
    )
