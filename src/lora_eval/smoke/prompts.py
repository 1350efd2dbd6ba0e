"""A prompt set of one's own, asked beside the prompts that smoke brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_eval.engines.vllm_probe import Probe
from lora_eval.exporters.rows import Row, read_rows, row_ids
from lora_eval.protocols import GenerateRequest, ScoreRequest

MOST = 32  # of a longer file so many rows, evenly spaced: each is answered here, once an arm
_NEW_TOKENS = 16


def read_prompts(path: Path) -> list[Row]:
    """Return the prompts of a JSON-lines file (messages, text or prompt), at most `MOST`.

    Raises:
        DataError: the file cannot be read, or holds no row.
    """
    rows = read_rows(path)
    if len(rows) <= MOST:
        return rows
    return [rows[index * len(rows) // MOST] for index in range(MOST)]


def with_prompts(probe: Probe, tokenizer: Any, rows: Sequence[Row], length: int) -> Probe:
    """Return the probe with each prompt (its first tokens, where it is longer than `length` leaves room for)
    as one to answer (these stand last, in the rows' order), and as one whose own log-probabilities are asked
    for.

    Raises:
        TemplateError: the tokenizer cannot render a conversation.
    """
    room = length - _NEW_TOKENS
    found = [tuple(row_ids(tokenizer, row, prompt_only=True)[:room]) for row in rows]
    asked = [GenerateRequest(ids, (), _NEW_TOKENS) for ids in found]
    scored = [ScoreRequest(ids[:1], ids[1:]) for ids in found if len(ids) > 1]
    return replace(probe, scores=(*probe.scores, *scored), generations=(*probe.generations, *asked))
