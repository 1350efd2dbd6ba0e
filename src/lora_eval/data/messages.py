r"""Conversations from JSON lines: `{"messages": [{"role", "content"}, ...]}`, or `{"prompt", "completion"}`.

A file is read whole and every fault of it is reported at once, with its line. Lines end with "\n" only:
U+2028 and U+0085, which `str.splitlines` takes for line ends, stand inside real texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_eval.errors import DataError

Message = dict[str, str]
Conversation = list[Message]

ROLES = ("system", "user", "assistant", "tool")
_SHOWN = 20
_JSONL = "for example: jq -c '.[]' old.json > new.jsonl"
_HELP = 'expected {"messages": [{"role": ..., "content": ...}, ...]} or {"prompt": ..., "completion": ...}'


class Conversations(list[Conversation]):
    """The conversations of a file that have an assistant turn, in the file's order.

    `without_assistant` holds the line numbers of the rows that have none: they give nothing to train on
    (TRL stops on the first of them), are left out of the list, and are the caller's to show.
    """

    def __init__(self, conversations: list[Conversation], without_assistant: tuple[int, ...] = ()) -> None:
        super().__init__(conversations)
        self.without_assistant = without_assistant

    @property
    def conversations(self) -> list[Conversation]:
        """The conversations as a plain list."""
        return list(self)


def read_conversations(path: Path) -> Conversations:
    """Return the conversations of a JSON-lines file; blank lines are passed over.

    Raises:
        DataError: the file is missing or empty, a line is no conversation (all such lines are named, the
            first 20 in full), or no row at all has an assistant turn.
    """
    found: list[Conversation] = []
    without_assistant: list[int] = []
    faults: list[str] = []
    for number, line in _lines(path):
        problems, conversation = _parse_line(line)
        faults += [f"line {number}: {problem}" for problem in problems]
        if problems:
            continue
        if any(message["role"] == "assistant" for message in conversation):
            found.append(conversation)
        else:
            without_assistant.append(number)
    _raise_if_unusable(path, faults, len(found), len(without_assistant))
    return Conversations(found, tuple(without_assistant))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if content.lstrip().startswith((b"[\n", b"[\r", b"[{", b"[ ")):
        raise DataError(f"{path}: is one JSON array; expected JSON lines, one conversation a line ({_JSONL})")
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield number, line


def _parse_line(line: bytes) -> tuple[list[str], Conversation]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return [f"is not UTF-8 (byte {error.start + 1} of the line)"], []
    except json.JSONDecodeError as error:
        return [f"is not valid JSON at column {error.colno}: {error.msg}"], []
    except RecursionError:
        return ["is not a conversation: nested too deeply"], []
    if not isinstance(row, dict):
        return [f"{_HELP}, found {_kind(row)}"], []
    if "messages" in row:
        return _check_messages(row, "messages")
    if "prompt" in row and "completion" in row:
        return _join_prompt(row)
    return [f"{_HELP}, found the keys {', '.join(map(repr, row)) or '(none)'}"], []


def _join_prompt(row: dict[str, Any]) -> tuple[list[str], Conversation]:
    faults: list[str] = []
    conversation: Conversation = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        value = row[key]
        row_of_key = {**row, key: [{"role": role, "content": value}] if isinstance(value, str) else value}
        problems, messages = _check_messages(row_of_key, key)
        faults += problems
        conversation += messages
    return list(dict.fromkeys(faults)), conversation


def _check_messages(row: dict[str, Any], key: str) -> tuple[list[str], Conversation]:
    messages = row[key]
    if not isinstance(messages, list):
        return [f"'{key}': expected a list of messages, found {_kind(messages)}"], []
    faults = [] if messages else [f"'{key}' is empty"]
    if row.get("tools"):
        faults.append("has 'tools', which are not rendered here; write them into the system message")
    for index, message in enumerate(messages):
        faults += [f"{key}[{index}]{problem}" for problem in _message_problems(message)]
    return faults, [] if faults else [{"role": m["role"], "content": m["content"]} for m in messages]


def _message_problems(message: Any) -> Iterator[str]:
    if not isinstance(message, dict):
        yield f": expected a message with 'role' and 'content', found {_kind(message)}"
        return
    for key in ("role", "content"):
        if key not in message:
            yield f": missing key '{key}', found {', '.join(map(repr, message)) or 'no key'}"
        elif not isinstance(message[key], str):
            yield f".{key}: expected text, found {_kind(message[key])}"
        elif not _is_unicode(message[key]):
            yield f".{key}: holds half a surrogate pair, which is no text"
    role = message.get("role")
    if isinstance(role, str) and role not in ROLES:
        yield f".role: unknown role {role!r}; known: {', '.join(ROLES)}"
    if message.get("tool_calls"):
        yield ": has 'tool_calls', which are not rendered here; write them into 'content'"


def _raise_if_unusable(path: Path, faults: list[str], usable: int, without_assistant: int) -> None:
    if faults:
        shown = [f"{path}: {fault}" for fault in faults[:_SHOWN]]
        if len(faults) > _SHOWN:
            shown.append(f"{path}: and {len(faults) - _SHOWN} more faults")
        raise DataError("\n".join(shown))
    if not usable and not without_assistant:
        raise DataError(f"{path}: holds no conversation; {_HELP} on each line")
    if not usable:
        raise DataError(
            f"{path}: none of its {without_assistant} rows has an assistant turn; nothing to train on"
        )


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
