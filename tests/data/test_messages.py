"""Conversations are read from JSON lines, and all faults of a file are said at once with their lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_eval.data import read_conversations
from lora_eval.errors import DataError

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=40) | st.sampled_from(
    ["a\u2028b", "a\u2029b", "a\u0085b", "\x0b\x0c\x1c", "\n", "\r\n", '"', "\\n", "🙂"]
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": TEXT}
    ),
    min_size=1,
    max_size=4,
)
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def _write(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass"))
    return path


def _error(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_conversations(path)
    assert caught.value.exit_status == 2
    return str(caught.value)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(MESSAGES, min_size=1, max_size=5), final_newline=st.booleans())
def test_what_is_written_is_read_whatever_line_ends_stand_in_it(
    tmp_path: Path, rows: list[list[dict[str, str]]], final_newline: bool
) -> None:
    rows = [*rows, CHAT]
    text = "\n".join(json.dumps({"messages": row}, ensure_ascii=False) for row in rows)
    path = tmp_path / "data.jsonl"
    path.write_bytes((text + "\n" * final_newline).encode())

    found = read_conversations(path)

    trainable = [row for row in rows if any(message["role"] == "assistant" for message in row)]
    assert found == trainable
    assert found.conversations == trainable
    assert len(found) + len(found.without_assistant) == len(rows)


def test_rows_without_an_assistant_turn_are_named_by_line(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "d.jsonl", {"messages": CHAT[:1]}, "", {"messages": CHAT}, {"messages": CHAT[:1]}
    )
    found = read_conversations(path)
    assert found.without_assistant == (1, 4)
    assert list(found) == [CHAT]


def test_prompt_and_completion_become_messages(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "completion": "a", "id": 7},
        {"prompt": [{"role": "system", "content": "s"}, CHAT[0]], "completion": [CHAT[1]]},
    ]
    system = {"role": "system", "content": "s"}
    assert read_conversations(_write(tmp_path / "d.jsonl", *rows)) == [CHAT, [system, *CHAT]]


def test_a_byte_order_mark_and_crlf_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"messages": CHAT}).encode() + b"\r\n\r\n")
    assert read_conversations(path) == [CHAT]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"messages": [', "line 2: is not valid JSON at column 15: Expecting value"),
        ("[1]", "line 2: expected {"),
        ({"instruction": "i", "output": "o"}, "found the keys 'instruction', 'output'"),
        ({"prompt": "p"}, "found the keys 'prompt'"),
        ({"messages": []}, "line 2: 'messages' is empty"),
        ({"messages": {"role": "user"}}, "line 2: 'messages': expected a list of messages, found an object"),
        (
            {"messages": ["hi"]},
            "line 2: messages[0]: expected a message with 'role' and 'content', found text",
        ),
        (
            {"messages": [{"from": "human", "value": "x"}]},
            "messages[0]: missing key 'role', found 'from', 'value'",
        ),
        (
            {"messages": [CHAT[0], {"role": "assistant", "content": None}]},
            "messages[1].content: expected text, found null",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content: expected text, found a list",
        ),
        (
            {"messages": [{"role": "human", "content": ""}]},
            "messages[0].role: unknown role 'human'; known: system, user",
        ),
        ({"messages": CHAT, "tools": [{}]}, "line 2: has 'tools', which are not rendered here"),
        (
            {"messages": [{**CHAT[1], "tool_calls": [{}]}]},
            "messages[0]: has 'tool_calls', which are not rendered here",
        ),
        ({"prompt": 3, "completion": "a"}, "line 2: 'prompt': expected a list of messages, found a number"),
        (
            '{"messages": [{"role": "user", "content": "\\ud800"}]}',
            "messages[0].content: holds half a surrogate pair",
        ),
    ],
)
def test_each_fault_names_line_and_key(tmp_path: Path, row: Any, message: str) -> None:
    path = _write(tmp_path / "d.jsonl", {"messages": CHAT}, row)
    error = _error(path)
    assert error.startswith(f"{path}: line 2: ")
    assert message in error


def test_all_faults_at_once_and_the_count_of_the_rest(tmp_path: Path) -> None:
    error = _error(_write(tmp_path / "d.jsonl", {"messages": CHAT}, *["{"] * 25)).splitlines()
    assert len(error) == 21
    assert ": line 2: " in error[0]
    assert ": line 21: " in error[19]
    assert error[20].endswith(": and 5 more faults")


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(content)
    assert _error(path).startswith(f"{path}: holds no conversation; expected")


def test_a_file_without_any_assistant_turn_is_an_error(tmp_path: Path) -> None:
    path = _write(tmp_path / "d.jsonl", *[{"messages": CHAT[:1]}] * 3)
    assert "none of its 3 rows has an assistant turn" in _error(path)


def test_a_missing_file_a_folder_and_another_encoding_are_errors(tmp_path: Path) -> None:
    assert _error(tmp_path / "none.jsonl").endswith("none.jsonl: no such file")
    assert "cannot be read" in _error(tmp_path)
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"prompt": "caf\xe9", "completion": ""}')
    assert _error(path).endswith("line 1: is not UTF-8 (byte 16 of the line)")


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_array_is_named_once(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps([{"messages": CHAT}] * 3, indent=indent))
    error = _error(path)
    assert error.startswith(f"{path}: is one JSON array; expected JSON lines")
    assert "\n" not in error
