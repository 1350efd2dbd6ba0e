"""What both arms are asked: prompts of a file or of a stored run, with the reference's greedy answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_eval.engines.transformers import open_engine
from lora_eval.errors import InputError
from lora_eval.exporters.rows import Row, read_rows, row_ids
from lora_eval.fingerprint import fingerprint_data
from lora_eval.models import Resident
from lora_eval.protocols import GenerateRequest, Progress
from lora_eval.runstore import has_run, read_run


@dataclass(frozen=True, slots=True)
class Asked:
    """Token ids of a prompt followed by the reference's greedy answer, which begins at `start`."""

    ids: tuple[int, ...]
    start: int


def read_prompts(path: Path, limit: int) -> list[Row]:
    """Return at most `limit` prompts, evenly spaced: rows of a JSON-lines file, or the distinct prompts of a
    run folder as `compare` stores it.

    Raises:
        InputError: neither a file nor a run.
        DataError: the file cannot be read, or holds no row.
    """
    if path.is_dir():
        if not has_run(path):
            raise InputError(f"--prompts {path}: the folder holds no run (run.json, samples.parquet)")
        rows: list[Row] = list(dict.fromkeys(row.prompt for row in read_run(path).rows))
    else:
        rows = read_rows(path)
    if len(rows) <= limit:
        return rows
    return [rows[index * len(rows) // limit] for index in range(limit)]


def prompt_ids(tokenizer: Any, rows: Sequence[Row], length: int) -> list[tuple[int, ...]]:
    """Return the token ids of each prompt, cut to its first `length`."""
    return [tuple(row_ids(tokenizer, row, prompt_only=True)[:length]) for row in rows]


def answer(
    resident: Resident, arm: str, prompts: Sequence[tuple[int, ...]], new_tokens: int, progress: Progress
) -> list[Asked]:
    """Return each prompt with the reference's greedy answer of at most `new_tokens`."""
    requests = [GenerateRequest(ids, (), new_tokens) for ids in prompts]
    from lora_eval.suites.reference import covered

    answers = covered(open_engine(resident)).generate(arm, requests, progress)
    return [Asked(ids + found.token_ids, len(ids)) for ids, found in zip(prompts, answers, strict=True)]


def sequences_fingerprint(prompts: Sequence[tuple[int, ...]]) -> str:
    """Return the sha256 of the prompts' token ids."""
    return fingerprint_data([list(ids) for ids in prompts])
