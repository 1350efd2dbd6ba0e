"""`lora-eval template` lists, shows bytes, applies without half-written folders, and checks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PLAIN = "{% for m in messages %}{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"


def test_list(run_cli: Callable[..., Any]) -> None:
    assert "Qwen2.5 Instruct (ChatML with tools)." in run_cli("template", "list").stdout
    rows = {row["name"]: row for row in json.loads(run_cli("template", "list", "--json").stdout)}
    assert rows["llama3"]["families"] == ["llama"]
    assert rows["qwen2.5"]["training"] is True


def test_show_gives_the_bytes(run_cli: Callable[..., Any]) -> None:
    shown = run_cli("template", "show", "llama3").stdout
    row = json.loads(run_cli("template", "show", "llama3", "--json").stdout)
    assert hashlib.sha256(shown.encode()).hexdigest() == row["upstream_sha256"]
    assert "{%- generation %}" in run_cli("template", "show", "llama3", "--training").stdout


def test_show_training_of_one_that_has_none(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "x.jinja"
    path.write_text(PLAIN)
    result = run_cli("template", "show", path, "--training")
    assert (result.status, result.stderr) == (2, "Error: template 'x' has no training text\n")


def test_apply_writes_a_tokenizer_that_has_both_texts(
    run_cli: Callable[..., Any], tiny_llama: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    out = tmp_path / "new" / "tokenizer"
    result = run_cli("template", "apply", "qwen2.5", "--tokenizer", tiny_llama, "--out", out)
    assert (result.status, result.stdout) == (0, "")
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert set(tokenizer.chat_template) == {"default", "training"}
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(tiny_llama).get_vocab()
    assert [path.name for path in out.parent.iterdir()] == ["tokenizer"]

    again = run_cli("template", "apply", "qwen2.5", "--tokenizer", tiny_llama, "--out", out)
    assert again.status == 2
    assert "exists already and is not empty" in again.stderr


def test_apply_leaves_nothing_where_it_fails(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    for name, folder in (("qwen2.5", tmp_path / "empty"), ("qwen2.5", tmp_path / "none"), ("qwen", tmp_path)):
        assert run_cli("template", "apply", name, "--tokenizer", folder, "--out", out).status == 2
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_check_by_text_and_by_token(run_cli: Callable[..., Any], tiny_llama: Path) -> None:
    result = run_cli("template", "check", "qwen2.5")
    assert (result.status, result.stdout.splitlines()[-1]) == (0, "safe to train with")
    shown = run_cli("template", "check", "qwen2.5", "--tokenizer", tiny_llama)
    assert shown.status == 0
    assert "assistant\n[1][<|im_end|>]\n" in shown.stdout
    data = json.loads(run_cli("template", "check", "qwen2.5", "--tokenizer", tiny_llama, "--json").stdout)
    assert data["passed"] is True
    assert "".join(token["text"] for token in data["tokens"] if token["trained"]) == "1<|im_end|>2<|im_end|>"


def test_check_ends_with_3_where_the_end_of_turn_is_not_trained(
    run_cli: Callable[..., Any], tiny_llama: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(PLAIN)
    marked = (
        "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    )
    marked += "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}"
    (tmp_path / "mine_training.jinja").write_text(marked)
    result = run_cli("template", "check", path, "--tokenizer", tiny_llama)
    assert result.status == 3
    assert "do not end in a stop token" in result.stdout
    assert result.stdout.splitlines()[-1] == "NOT safe to train with"


@pytest.mark.parametrize("name", ["lama3", "./none.jinja"])
def test_an_unknown_template_ends_with_status_2(run_cli: Callable[..., Any], name: str) -> None:
    result = run_cli("template", "check", name)
    assert result.status == 2
    assert result.stdout == ""
    assert "Did you mean 'llama3'?" in result.stderr or "no such file" in result.stderr


def test_check_counts_what_of_a_data_file_trains(
    run_cli: Callable[..., Any], tiny_llama: Path, tmp_path: Path
) -> None:
    data = tmp_path / "chats.jsonl"
    rows = [{"prompt": "Hi", "completion": "Hello"}, {"prompt": "Count", "completion": "1 2 3 4 5 6 7 8"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("template", "check", "qwen2.5", "--tokenizer", tiny_llama, "--data", data)
    counted = json.loads(run_cli(*arguments, "--json").stdout)["data"]
    assert (counted["rows"], counted["trained_tokens"], counted["cut"]) == (2, len("Hello") + 15 + 2, [])
    shown = run_cli(*arguments, "--max-length", "110").stdout
    assert "1 rows cut at max_length 110, 1 of them inside the last answer" in shown

    result = run_cli("template", "check", "qwen2.5", "--data", data)
    assert result.status == 2
    assert "--data needs --tokenizer" in result.stderr
    data.write_text("{")
    assert run_cli(*arguments).status == 2
