"""Checkpoints that can be trusted: the hash of every file is written when all of them are there.

transformers writes the files in place, and with `resume_from_checkpoint=True` takes the highest number
unchecked: a missing `optimizer.pt`, `scheduler.pt` or `rng_state.pth` then resumes silently and wrongly.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lora_eval.errors import RecordError
from lora_eval.fingerprint import sha256_file
from lora_eval.schema import load_json, write_text

MANIFEST = "files.json"
# Without these a run goes on, but as another one.
_NEEDED = ("trainer_state.json", "optimizer.pt", "scheduler.pt")


def seal(checkpoint: Path) -> None:
    """Write the hash of every file of a complete checkpoint into it."""
    import json

    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST)
    hashes = {str(path.relative_to(checkpoint)): sha256_file(path) for path in files}
    write_text(checkpoint / MANIFEST, json.dumps(hashes, indent=2) + "\n")


def is_whole(checkpoint: Path) -> bool:
    """True where the checkpoint was sealed, each of its files is what it was then, and none is missing."""
    try:
        hashes: dict[str, str] = load_json(checkpoint / MANIFEST)
    except RecordError:
        return False
    needed = all(name in hashes for name in _NEEDED) and any(name.startswith("rng_state") for name in hashes)
    return needed and all(_is(checkpoint / name, expected) for name, expected in hashes.items())


def newest_whole(folder: Path) -> Path | None:
    """Return the whole checkpoint with the most steps, or None."""
    return next((path for path in reversed(_numbered(folder)) if is_whole(path)), None)


def remove_broken(folder: Path) -> None:
    """Remove checkpoints that cannot be resumed from, for instance those a full disk has left."""
    for path in _numbered(folder):
        if not is_whole(path):
            shutil.rmtree(path)


def sealing_callback() -> Any:
    """Return a trainer callback that seals each checkpoint once every process has written its part."""
    from transformers import TrainerCallback

    from lora_eval.models.processes import rank
    from lora_eval.train.processes import wait_for_all

    class SealingCallback(TrainerCallback):  # type: ignore[misc]
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            wait_for_all()  # each process writes its own rng_state
            if rank() == 0:
                seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return SealingCallback()


def step_of(checkpoint: Path) -> int:
    """Return the number of steps after which the checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def _numbered(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=step_of)


def _is(path: Path, expected: str) -> bool:
    return path.is_file() and sha256_file(path) == expected
