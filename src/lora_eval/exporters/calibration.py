"""Calibration rows: conversations rendered with the model's own chat template, as token ids."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_eval.errors import DataError, InputError
from lora_eval.exporters.rows import Row, read_rows, row_ids
from lora_eval.fingerprint import fingerprint_data, sha256_file
from lora_eval.models import load_tokenizer, read_lineage
from lora_eval.models.locate import read_config
from lora_eval.records import Recipe
from lora_eval.resources import resolve_path
from lora_eval.schema import read_record

RECIPE = "recipe.resolved.yaml"
_POSITIONS = ("max_position_embeddings", "n_positions")


def calibration_files(model: Path, given: Path | None) -> list[Path]:
    """Return the file given, else the files that the model was trained on, if they are still the same.

    Raises:
        InputError: none was given and the training data cannot be found or has changed.
    """
    if given is not None:
        return [given]
    how = "give rows like those that the model will see with --calibration FILE"
    if not (model / RECIPE).is_file():
        raise InputError(f"{model}: no {RECIPE} says what it was trained on; {how}")
    data = read_record(model / RECIPE, Recipe).data
    try:
        files = [resolve_path(name, model) for name in data.files]
        held_out = [resolve_path(name, model) for name in data.eval_files]
    except InputError as error:
        raise InputError(f"{model}: its training data cannot be found ({error}); {how}") from error
    if not files or not all(path.is_file() for path in [*files, *held_out]):
        raise InputError(
            f"{model}: its training data ({', '.join(data.files)}) is not on this machine; {how}"
        )
    trained_on = _trained_on(model)
    if trained_on and trained_on != fingerprint_data([sha256_file(path) for path in [*files, *held_out]]):
        raise InputError(f"{model}: its training data ({', '.join(data.files)}) has changed since; {how}")
    return files


def trained_for(model: Path) -> str | None:
    """Return the suite that the recipe of the model's training names, or None."""
    return read_record(model / RECIPE, Recipe).suite if (model / RECIPE).is_file() else None


def choose_rows(files: list[Path], samples: int, seed: int) -> list[Row]:
    """Return at most `samples` rows of the files, drawn without repetition by the seed.

    Raises:
        DataError: a file cannot be read or holds no row.
    """
    rows = [row for path in files for row in read_rows(path)]
    return random.Random(seed).sample(rows, min(samples, len(rows)))


def calibration_ids(model: Path, rows: Sequence[Row], max_length: int) -> list[list[int]]:
    """Return the rows as token ids, each cut to `max_length` and to what the model reads; empty ones are left
    out.

    Raises:
        TemplateError: the rows are conversations and the model's tokenizer has no chat template.
        DataError: no row becomes a token.
    """
    tokenizer = load_tokenizer(model)
    config = read_config(model, "config.json")
    length = min([max_length, *(int(config[key]) for key in _POSITIONS if config.get(key))])
    found = [ids[:length] for row in rows if (ids := row_ids(tokenizer, row))]
    if not found:
        raise DataError(
            f"none of the {len(rows)} calibration rows becomes a token with the tokenizer of {model}"
        )
    return found


def row_messages(row: Row) -> list[str]:
    """Return what a row says: its one text, or the text of each message (of all its parts)."""
    if isinstance(row, str):
        return [row]
    return [_content(message.get("content")) for message in row]


def _content(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


def _trained_on(model: Path) -> str | None:
    lineage = read_lineage(model)
    steps = [step for step in lineage.steps if "data" in step.inputs] if lineage else []
    return steps[-1].inputs["data"] if steps else None
