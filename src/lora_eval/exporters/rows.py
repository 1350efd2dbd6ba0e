"""Rows of a JSON-lines file that become token ids: conversations, or texts as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lora_eval.errors import DataError, TemplateError

Row = str | list[dict[str, Any]]
_SHOWN = 20
_WIDTH = 100
_HELP = 'expected {"messages": [{"role": ..., "content": ...}, ...]}, {"text": ...} or {"prompt": ...}'


def read_rows(path: Path) -> list[Row]:
    """Return conversations (`messages`) and texts (`text`, `prompt`) in the file's order.

    Raises:
        DataError: the file is missing or holds no row, or lines are faulty (their numbers are given).
    """
    try:
        lines = path.read_text("utf-8").split("\n")  # not splitlines: U+2028 stands inside real texts
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    rows: list[Row] = []
    faulty: list[int] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _row(line)
        if row is None:
            faulty.append(number)
        else:
            rows.append(row)
    if faulty:
        more = f" and {len(faulty) - _SHOWN} more" if len(faulty) > _SHOWN else ""
        numbers = ", ".join(map(str, faulty[:_SHOWN]))
        first = lines[faulty[0] - 1]
        found = first if len(first) <= _WIDTH else f"{first[:_WIDTH]}..."
        raise DataError(f"{path}: faulty rows at line {numbers}{more}: {_HELP}; line {faulty[0]} is {found}")
    if not rows:
        raise DataError(f"{path}: holds no row; {_HELP}")
    return rows


def row_ids(tokenizer: Any, row: Row, *, prompt_only: bool = False) -> list[int]:
    """Return a row's token ids. `prompt_only`: of a conversation, everything before its last answer and the
    opening of that answer.

    Raises:
        TemplateError: the tokenizer has no chat template, or it does not take these messages.
    """
    if isinstance(row, str):
        return list(tokenizer(row)["input_ids"])
    if not tokenizer.chat_template:
        raise TemplateError(
            f"{tokenizer.name_or_path}: no chat template, so conversations cannot be rendered; set one with "
            'lora-eval template, or give texts: {"text": ...}'
        )
    import jinja2

    messages = _before_last_answer(row) if prompt_only else row
    try:
        rendered = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, add_generation_prompt=prompt_only
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise TemplateError(f"{tokenizer.name_or_path}: the chat template fails: {error}") from error
    return list(rendered["input_ids"])


def _before_last_answer(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if messages[-1]["role"] == "assistant" and len(messages) > 1:
        return messages[:-1]
    return messages


def _row(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(row, dict):
        return None
    messages = row.get("messages")
    if isinstance(messages, list) and messages:
        whole = all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m for m in messages
        )
        return messages if whole else None
    text = row.get("text", row.get("prompt"))
    return text if isinstance(text, str) and text.strip() else None
