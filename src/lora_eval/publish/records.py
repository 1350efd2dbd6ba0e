"""What a publication rests on: the comparison, what was verified, and how the weights came about.

Published copies of our records name no path of this machine: what the records call by a path is called by its
name on the Hub, or by its last part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, TypeVar

from lora_eval.errors import InputError
from lora_eval.records import Comparison, Lineage, Recipe, Run, TrainingLog, Verification
from lora_eval.records.base import Record
from lora_eval.runstore import HEADER
from lora_eval.schema import dump_record, load_json, load_yaml, parse_record, read_record

EVALUATION = "evaluation"
RECIPE = "recipe.resolved.yaml"
AnyRecord = TypeVar("AnyRecord", bound=Record)


@dataclass(frozen=True, slots=True)
class Records:
    """The records of one publication; None where there is none. `recipe` is the resolved one, `headers` are
    those of the arms' runs by name, `rank` is the adapter's largest.
    """

    comparison: Comparison
    verification: Verification | None = None
    lineage: Lineage | None = None
    training: TrainingLog | None = None
    recipe: Recipe | None = None
    headers: Mapping[str, Run] = field(default_factory=dict)
    rank: int | None = None


def read_published(folder: Path) -> Records:
    """Return the records of a folder as it is published.

    Raises:
        InputError: it holds no published comparison.
        RecordError: a record is faulty.
    """
    path = folder / EVALUATION / "comparison.json"
    if not path.is_file():
        raise InputError(f"{folder}: no {EVALUATION}/comparison.json: not published by lora-eval")
    comparison = read_record(path, Comparison)
    headers = {
        name: read_record(header, Run)
        for name in run_names(comparison)
        if (header := folder / EVALUATION / "runs" / name / HEADER).is_file()
    }
    return Records(
        comparison=comparison,
        verification=read_optional(folder / EVALUATION / "verification.json", Verification),
        lineage=read_optional(folder / "lineage.json", Lineage),
        training=read_optional(folder / "training_log.json", TrainingLog),
        recipe=read_recipe(folder / RECIPE),
        headers=headers,
        rank=read_rank(folder),
    )


def run_names(comparison: Comparison) -> list[str]:
    """Return the names of the runs behind the arms: an arm's own, or those of its training runs."""
    return [run.name for arm in comparison.arms for run in arm.runs or (arm,)]


def arm_names(comparison: Comparison) -> dict[str, str]:
    """Return what the arms' places on this machine, and addresses of servers, are called where published."""
    placed = [(place.path, place.name) for arm in comparison.arms for place in arm.runs or (arm,)]
    return {path: name for path, name in placed if path.startswith(("/", "http://", "https://"))}


def read_rank(folder: Path) -> int | None:
    """Return the largest rank of the adapter in a folder; None where there is none."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        return None
    config = load_json(path)
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    return max((rank for rank in ranks if isinstance(rank, int)), default=None)


def read_optional(path: Path, kind: type[AnyRecord]) -> AnyRecord | None:
    """Return the record, or None where there is no such file (RecordError where it is faulty)."""
    return read_record(path, kind) if path.is_file() else None


def read_recipe(path: Path, names: Mapping[str, str] | None = None) -> Recipe | None:
    """Return the recipe that training left beside the weights, or None; with `names`, as `portable` does."""
    if not path.is_file():
        return None
    data = load_yaml(path)
    return parse_record(data if names is None else portable_data(data, names), Recipe, str(path))


def find_verification(fingerprint: str, places: list[Path]) -> Verification | None:
    """Return the verification of these weights among `verification*.json` of the folders; a passed one first.

    Raises:
        RecordError: such a file is faulty.
    """
    paths = dict.fromkeys(path for place in places for path in sorted(place.glob("verification*.json")))
    found = [record for path in paths if (record := read_record(path, Verification))]
    own = [record for record in found if record.candidate.fingerprint == fingerprint]
    return next((record for record in own if record.passed), own[0] if own else None)


def portable(record: AnyRecord, names: Mapping[str, str]) -> AnyRecord:
    """Return the record with every path of this machine replaced: by its name in `names` (path -> name; what
    lies below a named folder keeps the rest of its path), else by its last part.
    """
    data = portable_data(json.loads(dump_record(record)), names)
    return parse_record(data, type(record), type(record).__name__)


def portable_data(data: Any, names: Mapping[str, str]) -> Any:
    """Return JSON-like data with every path replaced as `portable` does."""
    return _replaced(data, sorted(names.items(), key=lambda item: -len(item[0])))


def _replaced(value: Any, names: list[tuple[str, str]]) -> Any:
    if isinstance(value, dict):
        return {_replaced(key, names): _replaced(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, names) for inner in value]
    return _without_paths(value, names) if isinstance(value, str) else value


def _without_paths(text: str, names: list[tuple[str, str]]) -> str:
    from lora_eval.publish.refusals import ABSOLUTE_PATH

    for path, name in names:
        text = text.replace(path, name)
    text = ABSOLUTE_PATH.sub(lambda match: PurePath(match.group().replace("\\", "/")).name, text)
    return PurePath(text).name if text.startswith("/") and len(PurePath(text).parts) > 2 else text
