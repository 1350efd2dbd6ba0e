"""`lora-eval recipe` lists without importing a library, shows origins, checks and copies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NAMES = {"qlora-base", "qlora-llama3-8b", "qlora-qwen2.5-7b"}


def test_list_has_names_and_summaries(run_cli: Callable[..., Any]) -> None:
    result = run_cli("recipe", "list")
    assert result.status == 0
    assert any(line.split("  ")[-1].strip() == "Qwen2.5 7B Instruct." for line in result.stdout.splitlines())
    rows = json.loads(run_cli("recipe", "list", "--json").stdout)
    assert {row["name"] for row in rows} >= NAMES
    assert all(row["summary"] and row["package"] and row["version"] for row in rows)


def test_list_imports_no_library(run_python: Callable[..., Any]) -> None:
    code = (
        "import sys; from lora_eval.cli.main import run; assert run(['recipe', 'list']) == 0; "
        "print([m for m in ('torch', 'transformers', 'peft', 'trl', 'lm_eval', 'numpy') if m in sys.modules])"
    )
    assert run_python("-c", code).stdout.splitlines()[-1] == "[]"


def test_show_gives_the_file_as_it_is_written(run_cli: Callable[..., Any]) -> None:
    result = run_cli("recipe", "show", "qlora-base")
    assert result.stdout.startswith("# QLoRA with the defaults of the literature")
    assert "bnb_4bit_quant_type: nf4              # [QLoRA]" in result.stdout


def test_show_resolved_says_where_each_value_is_from(run_cli: Callable[..., Any]) -> None:
    result = run_cli("recipe", "show", "qlora-llama3-8b", "--resolved", "training.seed=7")
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert lines["lora.r"].split()[1] == "64"
    assert lines["lora.r"].endswith("qlora-llama3-8b.yaml")
    assert lines["lora.bias"].endswith("qlora-base.yaml")
    assert lines["training.seed"].split()[1:] == ["7", "#", "command", "line", "'training.seed=7'"]

    data = json.loads(run_cli("recipe", "show", "qlora-llama3-8b", "training.seed=7", "--json").stdout)
    assert data["recipe"]["training"]["seed"] == 7
    assert data["origins"]["training.seed"] == "command line 'training.seed=7'"
    assert set(lines) == set(data["origins"])


def test_validate_says_everything_at_once(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("schema: 1\nname: bad\nlora: {lora_alfa: 16}\ntraining: {learning_rate: fast}\n")
    worse = tmp_path / "worse.yaml"
    worse.write_text(
        "schema: 1\nname: worse\nchat_template: lama3\nsuite: quik\n"
        "training: {optim: paged_adamw}\ndata: {files: [none.jsonl]}\n"
    )
    result = run_cli("recipe", "validate", "qlora-base", bad, worse)
    assert result.status == 2
    assert result.stdout == "qlora-base: valid\n"
    for text in (
        f"Error: {bad}: unknown key 'lora.lora_alfa'; did you mean 'lora_alpha'?",
        f"Error: {bad}: training.learning_rate: expected a number, got 'fast'",
        "training: paged_adamw is not a valid OptimizerNames",
        "No template named 'lama3'. Did you mean 'llama3'?",
        "No suite named 'quik'. Did you mean 'quick'?",
        f"no such file: {tmp_path}/none.jsonl",
    ):
        assert text in result.stderr

    rows = json.loads(run_cli("recipe", "validate", "qlora-base", bad, "--json").stdout)
    assert [row["valid"] for row in rows] == [True, False]
    assert len(rows[1]["problems"]) == 2


@pytest.mark.parametrize(
    "arguments", [("show", "qlora-bas"), ("validate", "qlora-bas"), ("init", "qlora-bas")]
)
def test_an_unknown_recipe_ends_with_status_2(
    run_cli: Callable[..., Any], arguments: tuple[str, ...]
) -> None:
    result = run_cli("recipe", *arguments)
    assert result.status == 2
    assert "No recipe named 'qlora-bas'. Did you mean 'qlora-base'?" in result.stderr
    assert result.stdout == ""


def test_init_copies_comments_and_all_and_overwrites_nothing(
    run_cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_cli("recipe", "init", "qlora-qwen2.5-7b").status == 0
    copy = tmp_path / "qlora-qwen2.5-7b.yaml"
    assert copy.read_text() == run_cli("recipe", "show", "qlora-qwen2.5-7b").stdout
    copy.write_text("mine")
    result = run_cli("recipe", "init", "qlora-qwen2.5-7b")
    assert result.status == 2
    assert "exists already; give another file with --out" in result.stderr
    assert copy.read_text() == "mine"
    assert run_cli("recipe", "init", "qlora-base", "--out", tmp_path / "new" / "mine.yaml").status == 0
    shown = run_cli("recipe", "show", tmp_path / "new" / "mine.yaml", "--json")
    assert json.loads(shown.stdout)["recipe"]["name"] == "qlora-base"


def test_schema_is_json_with_the_sections_field_names(run_cli: Callable[..., Any]) -> None:
    schema = json.loads(run_cli("recipe", "schema").stdout)
    assert "lora_alpha" in schema["properties"]["lora"]["properties"]
    assert "bnb_4bit_quant_type" in schema["properties"]["quantization"]["properties"]
