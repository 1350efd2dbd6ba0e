"""Calibration rows: drawn by seed, rendered with the model's template, from the data of the training."""

from __future__ import annotations

import json
import shutil

import pytest

from lora_eval.errors import DataError, InputError, TemplateError
from lora_eval.exporters.calibration import (
    calibration_files,
    calibration_ids,
    choose_rows,
    row_messages,
    trained_for,
)
from lora_eval.fingerprint import fingerprint_data, sha256_file
from lora_eval.models import load_tokenizer, write_lineage
from lora_eval.records import Lineage, Step, Variant

CHATS = [
    [{"role": "user", "content": f"Question {n}"}, {"role": "assistant", "content": f"Answer {n}"}]
    for n in range(9)
]


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS))
    return path


def rows(model, path, samples=4, max_length=100, seed=0):
    return calibration_ids(model, choose_rows([path], samples, seed), max_length)


def test_conversations_are_rendered_with_the_models_template(tiny_llama, chats):
    found = rows(tiny_llama, chats, samples=99)
    tokenizer = load_tokenizer(tiny_llama)
    expected = {
        f"<|im_start|>user\nQuestion {n}<|im_end|>\n<|im_start|>assistant\nAnswer {n}<|im_end|>\n"
        for n in range(9)
    }
    assert {tokenizer.decode(ids) for ids in found} == expected


def test_the_seed_decides_which_rows(tiny_llama, chats):
    assert rows(tiny_llama, chats) == rows(tiny_llama, chats)
    assert len(rows(tiny_llama, chats)) == 4
    assert rows(tiny_llama, chats) != rows(tiny_llama, chats, seed=1)
    assert max(map(len, rows(tiny_llama, chats, max_length=7))) == 7


def test_rows_end_where_the_model_does(tiny_llama, chats, tmp_path):
    """Positions that the model does not have are no calibration (and an IndexError with learned ones)."""
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 20}))
    assert max(map(len, rows(model, chats, max_length=2048))) == 20
    assert max(map(len, rows(model, chats, max_length=7))) == 7


def test_rows_without_tokens_are_told(tiny_llama, tmp_path):
    with pytest.raises(DataError, match="none of the 2 calibration rows becomes a token"):
        calibration_ids(tiny_llama, ["", ""], 100)


def test_texts_are_taken_as_they_are(tiny_llama, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"text": "one\u2028line"}) + "\n")
    assert load_tokenizer(tiny_llama).decode(rows(tiny_llama, path)[0]) == "one\u2028line"


def test_conversations_need_a_template(tiny_llama, chats, tmp_path):
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    with pytest.raises(TemplateError, match="no chat template"):
        rows(model, chats)


def test_faulty_rows_are_named_together(tiny_llama, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"messages": []}\n{"text": "fine"}\n{"text"\n')
    with pytest.raises(DataError, match=r"faulty rows at line 1, 3: expected .*line 1 is"):
        rows(tiny_llama, path)
    with pytest.raises(DataError, match="cannot be read"):
        rows(tiny_llama, tmp_path / "none.jsonl")


def test_without_a_file_it_is_the_data_of_the_training(tiny_llama, chats, tmp_path):
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    with pytest.raises(InputError, match=r"--calibration FILE"):
        calibration_files(model, None)
    recipe = {"schema": 1, "name": "mine", "data": {"files": [str(chats)]}}
    (model / "recipe.resolved.yaml").write_text(json.dumps(recipe))
    assert calibration_files(model, None) == [chats]
    step = Step(tool="lora-eval train", version="1", inputs={"data": fingerprint_data([sha256_file(chats)])})
    write_lineage(model, Lineage(variants=(Variant(kind="merged", path=""),), steps=(step,)))
    assert calibration_files(model, None) == [chats]
    chats.write_text(chats.read_text() * 2)
    with pytest.raises(InputError, match="has changed since"):
        calibration_files(model, None)
    chats.unlink()
    with pytest.raises(InputError, match=r"cannot be found|not on this machine"):
        calibration_files(model, None)
    assert calibration_files(model, tmp_path / "given.jsonl") == [tmp_path / "given.jsonl"]


def test_the_suite_of_the_recipe_is_what_a_model_was_trained_for(tiny_llama, tmp_path):
    assert trained_for(tiny_llama) is None
    (tmp_path / "recipe.resolved.yaml").write_text('{"schema": 1, "name": "mine", "suite": "pocket"}')
    assert trained_for(tmp_path) == "pocket"


def test_the_texts_of_a_row_are_those_of_its_messages():
    assert row_messages("one text") == ["one text"]
    parts = [{"type": "text", "text": "see"}, {"type": "image"}, {"type": "text", "text": "this"}]
    row = [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]
    assert row_messages(row) == ["see\n\nthis", ""]
