"""Where an arm's weights come from: its lineage and training log, kept with the arm's run.

`compare` leaves copies beside `run.json`, so that a report can be made again when the adapter's folder has
moved or is on another machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_eval.records import Comparison, Lineage, Record, TrainingLog
from lora_eval.schema import read_record, write_record

_FILES: Mapping[str, type[Record]] = {"lineage.json": Lineage, "training_log.json": TrainingLog}


@dataclass(frozen=True, slots=True)
class Origin:
    """What is known of one arm (or one training run of it): None where no record was found."""

    lineage: Lineage | None = None
    training: TrainingLog | None = None


def read_origins(comparison: Comparison, runs: Path) -> dict[str, Origin]:
    """Return what is known of each arm by name: from `runs/NAME/`, else from the folder the arm names.

    Arms of which nothing is known are left out.

    Raises:
        RecordError: a file is there and is not what was written.
    """
    found = {}
    for name, path in _places(comparison):
        lineage, training = (_read(runs / name, path, file, kind) for file, kind in _FILES.items())
        if lineage is not None or training is not None:
            found[name] = Origin(
                lineage if isinstance(lineage, Lineage) else None,
                training if isinstance(training, TrainingLog) else None,
            )
    return found


def keep_origins(comparison: Comparison, runs: Path) -> None:
    """Copy what stands beside each arm's weights into the folder of its run."""
    for name, origin in read_origins(comparison, runs).items():
        for file, record in zip(_FILES, (origin.lineage, origin.training), strict=True):
            if record is not None and (runs / name).is_dir() and not (runs / name / file).exists():
                write_record(runs / name / file, record)


def _places(comparison: Comparison) -> Iterator[tuple[str, str]]:
    for arm in comparison.arms:
        yield from ((run.name, run.path) for run in arm.runs) if arm.runs else ((arm.name, arm.path),)


def _read(kept: Path, path: str, file: str, kind: type[Record]) -> Record | None:
    for folder in (kept, Path(path)):
        if (folder / file).is_file():
            return read_record(folder / file, kind)
    return None
