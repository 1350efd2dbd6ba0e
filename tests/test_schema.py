"""Strict loading gives every fault with its place; writing is whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.errors import OutputError, RecordError
from lora_eval.records import Comparison, EvalSuite, Lineage, Recipe, Record
from lora_eval.schema import (
    dump_record,
    dump_yaml,
    load_json,
    load_yaml,
    parse_record,
    parse_yaml,
    read_record,
    suggest,
    write_bytes,
    write_record,
    write_text,
)

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
# PyYAML folds the line separators of Unicode into a blank when it reads its own text again.
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x85\u2028\u2029"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
SECTIONS = st.dictionaries(NAMES, VALUES, max_size=4)


def problems(data: Any, model: type[Record]) -> list[str]:
    with pytest.raises(RecordError) as caught:
        parse_record(data, model, "file.yaml")
    assert str(caught.value) == "\n".join(f"file.yaml: {problem}" for problem in caught.value.problems)
    return list(caught.value.problems)


def test_every_fault_is_told_at_once_with_its_place() -> None:
    found = problems({"nam": "x", "lora": 3, "data": {"file": [], "max_rows": 0}, "family": [1]}, Recipe)

    assert sorted(found) == [
        "data.max_rows: input should be greater than or equal to 1, got 0",
        "family: expected a mapping with keys, got [1]",
        "lora: expected a mapping with keys, got 3",
        "missing key 'name'",
        "unknown key 'data.file'; did you mean 'files'?",
        "unknown key 'nam'; did you mean 'name'?",
    ]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (2, ["tasks[0]: expected a mapping with keys or text, got 2"]),
        ({"task": "x", "limt": 3}, ["unknown key 'tasks[0].limt'; did you mean 'limit'?"]),
        ({"task": "x", "limit": 0}, ["tasks[0].limit: input should be greater than or equal to 1, got 0"]),
        ({"limit": 1}, ["missing key 'tasks[0].task'"]),
        ({"task": 5}, ["tasks[0].task: expected text, got 5"]),
    ],
)
def test_a_value_of_several_forms_gives_the_faults_of_the_form_meant(entry: Any, expected: list[str]) -> None:
    assert problems({"name": "s", "version": "1", "tasks": [entry]}, EvalSuite) == expected


def test_a_choice_names_what_is_allowed() -> None:
    (found,) = problems({"variants": [{"kind": "mergd", "path": "m"}]}, Lineage)

    assert found.startswith("variants[0].kind: input should be 'base', 'adapter'")
    assert found.endswith("got 'mergd'")


def test_a_key_that_resembles_none_gets_no_suggestion() -> None:
    assert problems({"name": "x", "zzzz": 1}, Recipe) == ["unknown key 'zzzz'"]


def test_the_stored_name_of_a_key_is_suggested() -> None:
    assert problems({"name": "x", "schem": 1}, Recipe) == ["unknown key 'schem'; did you mean 'schema'?"]


def test_a_long_value_is_cut() -> None:
    (found,) = problems({"name": ["x" * 200]}, Recipe)

    assert len(found) < 100


@pytest.mark.parametrize("data", [None, 3, "text", ["a"]])
def test_only_a_mapping_is_a_record(data: Any) -> None:
    kind = type(data).__name__

    assert problems(data, Recipe) == [f"expected a mapping with keys, got {kind}"]


def test_a_file_of_a_later_schema_is_refused() -> None:
    assert problems({"name": "x", "schema": 2}, Recipe) == ["schema: input should be 1, got 2"]


@given(misspelt=st.sampled_from(sorted(Recipe.model_fields)), cut=st.integers(0, 20))
def test_a_key_with_a_letter_left_out_is_told(misspelt: str, cut: int) -> None:
    key = misspelt[: cut % len(misspelt)] + misspelt[cut % len(misspelt) + 1 :]

    (found,) = problems({"name": "x", key: 1} | ({} if key != "name" else {"zzz": 1}), Recipe)

    assert found.startswith(f"unknown key '{key}'")


@given(name=NAMES, lora=SECTIONS, training=SECTIONS)
def test_a_record_comes_back_from_its_text(name: str, lora: dict[str, Any], training: dict[str, Any]) -> None:
    recipe = Recipe(name=name, lora=lora, training=training)

    assert parse_record(json.loads(dump_record(recipe)), Recipe, "text") == recipe


@given(st.dictionaries(WORDS, st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS))
def test_yaml_written_by_us_comes_back(section: dict[str, Any]) -> None:
    assert parse_yaml(dump_yaml({"name": "x", "lora": section}), "text") == {"name": "x", "lora": section}


def test_yaml_that_others_wrote_is_read_as_they_meant() -> None:
    section = {"r": 8, "alpha": 1.5, "on": True, "none": None, "text": "größer", "list": [1, "a"]}

    assert load_text(yaml.safe_dump({"lora": section})) == {"lora": section}


def load_text(text: str) -> dict[str, Any]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.yaml"
        path.write_bytes(text.encode())
        return load_yaml(path)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-4", 1e-4),
        ("2E5", 2e5),
        ("-3e+2", -300.0),
        ("5.e-5", 5e-5),
        ("1.5e-4", 1.5e-4),
        ("'1e-4'", "1e-4"),
        ("e-4", "e-4"),
        ("1e", "1e"),
    ],
)
def test_a_number_with_an_exponent_is_a_number(written: str, value: Any) -> None:
    assert load_text(f"rate: {written}\n") == {"rate": value}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", "is not valid YAML at line 3, column 1: the key 'a' is given twice"),
        ("x:\n  a: 1\n  a: 2\n", "is not valid YAML at line 3, column 3: the key 'a' is given twice"),
        ("a: [1, 2\n", "is not valid YAML at line 2"),
        ("a: \x07\n", "is not valid YAML: unacceptable character"),
        ("- 1\n", "expected a mapping with keys, got list"),
        ("", "expected a mapping with keys, got NoneType"),
    ],
)
def test_yaml_faults_have_a_place(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, "utf-8")

    with pytest.raises(RecordError) as caught:
        load_yaml(path)

    assert str(caught.value).startswith(f"{path}: {problem}")


def test_yaml_merge_keys_are_no_duplicates() -> None:
    data = load_text("base: &base {a: 1, b: 2}\nmine:\n  <<: *base\n  b: 3\n")

    assert data["mine"] == {"a": 1, "b": 3}


def test_json_faults_have_a_place(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"a": 1,\n "b": }', "utf-8")

    with pytest.raises(RecordError, match="line 2, column 7"):
        load_json(path)


@pytest.mark.parametrize("load", [load_json, load_yaml])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, load: Callable[[Path], Any]) -> None:
    with pytest.raises(RecordError, match=r"missing\.x: no such file"):
        load(tmp_path / "missing.x")
    with pytest.raises(RecordError, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "latin").write_bytes(b"a: \xff")
    with pytest.raises(RecordError, match="latin: cannot be read"):
        load(tmp_path / "latin")


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_record_is_read_from_either_kind_of_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"recipe.{suffix}"
    write_record(path, Recipe(name="mine", lora={"r": 8}))

    assert read_record(path, Recipe) == Recipe(name="mine", lora={"r": 8})


def test_a_record_that_is_no_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_record(tmp_path / "c.json", Comparison(arms=(), suite={"x": float("nan")}, tasks=()))
    assert list(tmp_path.iterdir()) == []


def test_writing_makes_the_folder_and_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    write_text(path, "first")
    write_text(path, "zweite Fassung, größer")

    assert path.read_text("utf-8") == "zweite Fassung, größer"
    assert [item.name for item in path.parent.iterdir()] == ["file.txt"]


def test_a_written_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    write_text(tmp_path / "ours", "x")
    (tmp_path / "other").write_text("x")

    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, full_disk: Callable[[int], None]
) -> None:
    path = tmp_path / "run.json"
    write_text(path, "old")
    full_disk(4096)

    with pytest.raises(OutputError, match=r"run\.json: cannot be written: File too large"):
        write_bytes(path, b"x" * 8192)

    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["run.json"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(OutputError, match="cannot be written"):
        write_text(tmp_path / "file" / "run.json", "x")

    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "run.json", "x")

    assert list(tmp_path.iterdir()) == []


def test_the_nearest_name_is_suggested() -> None:
    assert suggest("qlora-7b", ["qlora-8b", "acme"]) == "; did you mean 'qlora-8b'?"
    assert suggest("something else", ["qlora-8b"]) == ""
