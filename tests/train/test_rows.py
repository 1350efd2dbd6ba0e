"""Which tokens train, by token, and what becomes of each row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lora_eval.errors import DataError
from lora_eval.train.rows import IGNORED, Tokenization, describe, make_rows, read_files
from tests.train.conftest import MARKED, chat, write_rows


@pytest.fixture
def how(tiny_llama: Path) -> Callable[..., Tokenization]:
    from lora_eval.models import load_tokenizer

    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.chat_template = {"default": tokenizer.chat_template, "training": MARKED}

    def make(**options: object) -> Tokenization:
        return Tokenization(tokenizer, stop_ids=frozenset({tokenizer.eos_token_id}), **options)

    return make


def read(tmp_path: Path, rows: list[dict], **options: object):
    path = write_rows(tmp_path / "rows.jsonl", rows)
    return read_files([path], **({"shuffle_seed": None, "max_rows": None} | options))


def test_answers_and_their_ends_train_and_nothing_else(how: Callable, tmp_path: Path) -> None:
    reading = read(tmp_path, [chat("One?", "Yes", "Two?", "No")])
    rows, counts = make_rows(reading, how())
    tokenizer = how().tokenizer
    trained = [label for label in rows[0].labels if label != IGNORED]
    assert tokenizer.decode(trained) == "Yes<|im_end|>No<|im_end|>"
    whole = tokenizer.apply_chat_template(reading.conversations[0], tokenize=True, return_dict=True)
    assert rows[0].input_ids == whole["input_ids"]
    assert all(
        label in (IGNORED, token) for token, label in zip(rows[0].input_ids, rows[0].labels, strict=True)
    )
    assert (counts.turns, counts.turns_without_end, counts.trained_tokens) == (2, 0, len(trained))


def test_rows_that_are_cut_or_lost_are_counted(how: Callable, tmp_path: Path) -> None:
    rows = [
        chat("Hi?", "Yes"),  # whole
        chat("Hi?", "Y" * 60),  # cut inside the answer
        chat("Hi?" * 30, "Yes"),  # no trained token left
        chat("Hi?", "Yes", "What now?" * 9, "No"),  # the last answer is cut off, the first stays
        {"messages": [{"role": "user", "content": "Nobody answers"}]},
    ]
    kept, counts = make_rows(read(tmp_path, rows), how(max_length=50))
    assert len(kept) == counts.used == 3
    assert (counts.read, counts.without_assistant, counts.untrained) == (5, 1, 1)
    assert (counts.cut, counts.cut_in_answer) == (3, 3)
    assert (counts.turns, counts.turns_without_end) == (3, 0)
    assert max(len(row.input_ids) for row in kept) == 50
    text = "\n".join(describe(counts, 50))
    assert "3 of 5 rows train" in text
    assert "1 rows without an assistant turn" in text
    assert "1 rows without a trained token within max_length 50" in text
    assert "3 rows cut at max_length 50, 3 of them inside an answer" in text
    assert "warning" not in text


def test_keep_end_cuts_the_start(how: Callable, tmp_path: Path) -> None:
    rows, _ = make_rows(read(tmp_path, [chat("Hi?" * 30, "Yes")]), how(max_length=10, keep_end=True))
    assert how().tokenizer.decode(rows[0].input_ids).endswith("Yes<|im_end|>\n")


def test_every_token_trains_where_the_recipe_says_so(how: Callable, tmp_path: Path) -> None:
    rows, _ = make_rows(read(tmp_path, [chat("Hi?", "Yes")]), how(assistant_only=False, template="default"))
    assert rows[0].labels == rows[0].input_ids


def test_an_end_of_turn_that_is_never_trained_is_said(how: Callable, tmp_path: Path) -> None:
    tokenization = how()
    tokenization.tokenizer.chat_template["training"] = MARKED.replace(
        "message['content'] + '<|im_end|>' -}}{% endgeneration %}{{- '\n'",
        "message['content'] -}}{% endgeneration %}{{- '<|im_end|>\n'",
    )
    _, counts = make_rows(read(tmp_path, [chat("Hi?", "Yes")]), tokenization)
    assert counts.turns_without_end == 1
    assert "may not learn to stop" in describe(counts, None)[-1]


def test_nothing_left_to_train_on(how: Callable, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="max_length=5"):
        make_rows(read(tmp_path, [chat("Hi?", "Yes")]), how(max_length=5))
    with pytest.raises(DataError, match=r"data\.files"):
        read_files([], shuffle_seed=None, max_rows=None)


def test_the_seed_fixes_the_order_and_which_rows_are_kept(tmp_path: Path) -> None:
    rows = [chat(str(i), "Yes") for i in range(50)]
    first, again, other = (
        read(tmp_path, rows, shuffle_seed=seed, max_rows=10).conversations for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len(first) == 10
    assert read(tmp_path, rows, max_rows=10).conversations == [row["messages"] for row in rows[:10]]
    assert read(tmp_path, rows, max_rows=10).left_out == 40
