"""Calibration rows: conversations rendered with the model's own chat template, as token ids."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from lora_eval.data.messages import read_conversations
from lora_eval.errors import DataError, InputError, TemplateError
from lora_eval.fingerprint import fingerprint_data, sha256_file
from lora_eval.models import load_tokenizer, read_lineage
from lora_eval.records import Recipe
from lora_eval.resources import resolve_path
from lora_eval.schema import read_record

RECIPE = "recipe.resolved.yaml"


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


def calibration_rows(
    model: Path, files: list[Path], *, samples: int, max_length: int, seed: int
) -> list[list[int]]:
    """Return at most `samples` rows of token ids, drawn without repetition by the seed, each cut to
    `max_length`.

    Raises:
        DataError: a file cannot be read or holds no row.
        TemplateError: the rows are conversations and the model's tokenizer has no chat template.
    """
    tokenizer = load_tokenizer(model)
    rows = [row for path in files for row in _read(path)]
    chosen = random.Random(seed).sample(rows, min(samples, len(rows)))
    if any(isinstance(row, list) for row in chosen) and not tokenizer.chat_template:
        raise TemplateError(
            f"{model}: its tokenizer has no chat template, so conversations cannot be rendered; set one with "
            'lora-eval template, or give texts: {"text": ...}'
        )
    return [ids[:max_length] for row in chosen if (ids := _ids(tokenizer, row))]


def _ids(tokenizer: Any, row: Any) -> list[int]:
    if isinstance(row, str):
        return list(tokenizer(row)["input_ids"])
    rendered = tokenizer.apply_chat_template(row, tokenize=True, return_dict=True)
    return list(rendered["input_ids"])


def _read(path: Path) -> list[Any]:
    """Return conversations, or texts where the file's first row has `text`."""
    if _first_row_has_text(path):
        return _read_texts(path)
    return list(read_conversations(path))


def _first_row_has_text(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        line = next((line for line in file if line.strip()), "")
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return False
    return isinstance(row, dict) and "text" in row


def _read_texts(path: Path) -> list[str]:
    texts = []
    for number, line in enumerate(path.read_text("utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f'{path}: line {number}: expected {{"text": ...}}: {error}') from error
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{path}: line {number}: 'text' is empty or no text")
        texts.append(text)
    return texts


def _trained_on(model: Path) -> str | None:
    lineage = read_lineage(model)
    steps = [step for step in lineage.steps if "data" in step.inputs] if lineage else []
    return steps[-1].inputs["data"] if steps else None
