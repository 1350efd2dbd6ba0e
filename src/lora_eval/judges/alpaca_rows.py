"""Rows of alpaca_eval's annotations.json: the judge's preference between a baseline's and a model's
answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_eval.judges.files import PlacedRow, Problems, parse_rows, take


@dataclass(frozen=True, slots=True)
class Preference:
    """One row. `value` is 1 (the baseline is better) to 2 (the model is); None: the judge gave no verdict.

    alpaca_eval writes a draw as 1.5 or 0, and a verdict that it could not read as -1 or null.
    """

    model: str
    baseline: str
    judge: str
    prompt: str
    value: float | None
    length: int | None
    length_baseline: int | None
    row: dict[str, Any]


def read_preferences(paths: Sequence[Path]) -> list[Preference]:
    """Return the rows of all files, in their order.

    Raises:
        InputError: with every fault of all files, each with its place.
    """
    return parse_rows(paths, _parse, _hint)


def _parse(row: PlacedRow, problems: Problems) -> Preference | None:
    before = len(problems.lines)
    value = _preference(row, problems)
    texts = {
        key: take(row, key, (str, type(None)), "text", problems) if key in row.values else None
        for key in ("instruction", "output_1", "output_2", "generator_1", "generator_2", "annotator")
    }
    if len(problems.lines) > before:
        return None
    one, two = texts["output_1"], texts["output_2"]
    return Preference(
        model=texts["generator_2"] or _stem(row.path),
        baseline=texts["generator_1"] or "baseline",
        judge=texts["annotator"] or "unknown judge",
        prompt=texts["instruction"] if texts["instruction"] is not None else f"{row.path} {row.place}",
        value=value,
        length=None if two is None else len(two),
        length_baseline=None if one is None else len(one),
        row=row.values,
    )


def _preference(row: PlacedRow, problems: Problems) -> float | None:
    value = take(row, "preference", (int, float, type(None)), "a number from 1 to 2, or null", problems)
    if value is None or math.isnan(value) or value == -1:
        return None
    if value != 0 and not 1 <= value <= 2:
        expected = "1 (baseline better) to 2 (model better), 0 or 1.5 for a draw, -1 or null for no verdict"
        problems.add(row.path, row.place, f"preference: expected {expected}, got {value}")
        return None
    return 1.5 if value == 0 else float(value)


def _stem(path: Path) -> str:
    name = path.name
    for suffix in (".gz", ".json", ".jsonl"):
        name = name.removesuffix(suffix)
    return name


def _hint(keys: Sequence[str]) -> str:
    if "question_id" in keys:
        return "no row has a preference; this looks like FastChat's judgments: use --suite mt-bench"
    if "output" in keys and "instruction" in keys:
        return "no row has a preference; these are a model's outputs, which have not been judged"
    return ""
