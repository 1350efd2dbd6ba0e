"""Suites from the command line, without any model library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_eval.records import EvalSuite
from lora_eval.schema import parse_record, parse_yaml


def test_list(run_cli: Callable) -> None:
    result = run_cli("suite", "list")
    assert result.status == 0
    names = [line.split()[0] for line in result.stdout.splitlines()]
    assert names == sorted(names)
    assert {"pocket", "open-llm", "quick"} <= set(names)
    rows = {row["name"]: row for row in json.loads(run_cli("suite", "list", "--json").stdout)["suites"]}
    assert rows["open-llm"]["tasks"][0] == "arc_challenge"
    assert rows["open-llm"]["package"].startswith("lora-eval ")


def test_list_imports_no_model_library(run_python: Callable) -> None:
    code = (
        "import sys; from lora_eval.cli.main import run; run(['suite', 'list']); "
        "print([m for m in ('torch', 'transformers', 'lm_eval', 'datasets', 'peft') if m in sys.modules])"
    )
    assert run_python("-c", code).stdout.splitlines()[-1] == "[]"


def test_show(run_cli: Callable) -> None:
    result = run_cli("suite", "show", "quick")
    assert result.status == 0
    shown = parse_record(parse_yaml(result.stdout, "shown"), EvalSuite, "shown")
    assert shown == EvalSuite.model_validate_json(run_cli("suite", "show", "quick", "--json").stdout)
    assert shown.entries()[0].limit == 300


def test_show_a_suite_of_ones_own(run_cli: Callable, tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text('name: mine\nversion: "1"\ntasks: [hellaswag]\n', "utf-8")
    assert "name: mine" in run_cli("suite", "show", tmp_path).stdout
    (tmp_path / "suite.yaml").write_text('name: mine\nversion: "1"\ntaks: [hellaswag]\n', "utf-8")
    result = run_cli("suite", "show", tmp_path / "suite.yaml")
    assert (result.status, "did you mean 'tasks'" in result.stderr) == (2, True)


@pytest.mark.parametrize("margin", [".inf", ".nan", "0"])
def test_a_margin_that_every_loss_or_none_lies_in_is_refused(
    run_cli: Callable, tmp_path: Path, margin: str
) -> None:
    entry = f"tasks: [{{task: hellaswag, margin: {margin}}}]"
    (tmp_path / "suite.yaml").write_text(f'name: mine\nversion: "1"\n{entry}\n', "utf-8")
    result = run_cli("suite", "show", tmp_path)
    assert (result.status, "margin" in result.stderr) == (2, True)


def test_unknown_suite(run_cli: Callable) -> None:
    result = run_cli("suite", "show", "quik")
    assert (result.status, "Did you mean 'quick'" in result.stderr) == (2, True)


def test_a_suite_of_another_package(run_cli: Callable, plugin_example: str) -> None:
    rows = {row["name"]: row for row in json.loads(run_cli("suite", "list", "--json").stdout)["suites"]}
    assert rows["acme-arithmetic"]["package"] == f"{plugin_example} 1.2"
    assert "acme_sums" in run_cli("suite", "show", "acme-arithmetic").stdout


def test_a_suite_of_another_package_runs(
    run_cli: Callable, plugin_example: str, tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    arms = ("--base", tiny_llama, "--adapter", tiny_adapter)
    result = run_cli("compare", *arms, "--suite", "acme-arithmetic", "--out", tmp_path / "out", "--json")
    assert result.status == 0, result
    (task,) = json.loads(result.stdout)["tasks"]
    assert (task["task"], task["n"]) == ("acme_sums", 25)


@pytest.mark.parametrize("name", ["open-llm", "reasoning", "instruction", "quick"])
def test_every_task_of_a_packaged_suite_is_lm_evals(name: str) -> None:
    from lora_eval.suites.catalog import load_suite
    from lora_eval.suites.task_index import load_tasks

    suite, _ = load_suite(name)
    tasks = [entry.task for entry in suite.entries()]
    manager = load_tasks(tasks, None)
    assert set(tasks) <= set(manager.task_index)
