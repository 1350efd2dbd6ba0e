"""`compare --plan`: what the tasks' sizes can find, without a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.suites.conftest import write_tasks


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def plan(run_cli: Callable, tasks: Path, tmp_path: Path) -> Callable:
    def call(*more: object, names: str = "t_choice,t_generate,t_rolling") -> object:
        asked = ["--tasks", names, "--include-path", tasks, "--out", tmp_path / "out"]
        return run_cli("compare", "--plan", *asked, *more)

    return call


def test_every_task_under_two_assumptions(plan: Callable) -> None:
    result = plan("--margin", "t_generate=0.1", "--json")
    assert result.status == 0, result
    found = json.loads(result.stdout)
    assert (found["suite"], found["level"], found["power"], found["tests"]) == ("tasks", 0.95, 0.8, 3)
    choice, generate, rolling = found["tasks"]
    assert (choice["task"], choice["items"], choice["metric"], choice["margin"]) == (
        "t_choice",
        14,
        "acc",
        None,
    )
    assert [case["changed"] for case in choice["cases"]] == [0.1, 0.2]
    assert [way["difference"] for way in choice["cases"][0]["needed"]] == [0.02, 0.05]
    assert (generate["metric"], generate["margin"]) == ("exact_match", 0.1)
    assert [(way["difference"], way["margin"]) for way in generate["cases"][1]["needed"]] == [(0.1, True)]
    assert rolling["cases"] == []
    assert "nothing is known of its spread" in rolling["reason"]


def test_groups_and_limits_count_what_is_run(plan: Callable) -> None:
    found = json.loads(plan("--limit", 5, "--json", names="t_group,t_generate").stdout)
    assert [(task["task"], task["items"]) for task in found["tasks"]] == [("t_group", 10), ("t_generate", 5)]


def test_the_tables_fit_80_columns(plan: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    gate = tmp_path / "gate.yaml"
    gate.write_text("schema: 1\nrules:\n  - {task: t_choice, max_drop: 0.05, arm: tuned}\n", "utf-8")
    text = plan("--gate", gate).stdout
    assert max(map(len, text.splitlines())) <= 80
    assert "What tasks can find (80% power, 95% level, 3 tests)" in text
    lines = [line.split() for line in text.splitlines()]
    assert next(line for line in lines if line[:1] == ["20"])[:2] == ["20", "%"]
    rule = next(line for line in lines if line[:2] == ["0", "t_choice"])
    assert rule[4] == "-5.0"
    assert "t_rolling: nothing is known" in text


def test_an_earlier_comparison_in_out_says_how_much_changes(
    run_cli: Callable, plan: Callable, tiny_llama: Path, tiny_adapter: Path, tasks: Path, tmp_path: Path
) -> None:
    asked = ["--tasks", "t_generate,t_last", "--include-path", tasks, "--out", tmp_path / "out"]
    assert run_cli("compare", "--base", tiny_llama, "--adapter", tiny_adapter, *asked).status == 0
    found = json.loads(plan("--json", names="t_generate,t_last,t_choice").stdout)
    sources = {task["task"]: [case["source"] for case in task["cases"]] for task in found["tasks"]}
    assert sources["t_last"] == ["measured on 14 items"]
    assert sources["t_choice"] == ["assumed", "assumed"]
    assert "measured by the comparison in --out" in " ".join(plan(names="t_last").stdout.split())


def test_no_model_is_loaded_or_named(run_python: Callable, tasks: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from lora_eval.cli.main import run; "
        f"status = run(['compare', '--plan', '--tasks', 't_last', '--include-path', {str(tasks)!r}, "
        f"'--out', {str(tmp_path / 'none')!r}]); "
        "sys.exit(status or ('peft' in sys.modules) or ('lora_eval.engines.transformers' in sys.modules))"
    )
    done = run_python("-c", code)
    assert done.status == 0, done.stderr
    assert "14" in done.stdout
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--margin", "t_chioce=0.1"], "--margin: no task 't_chioce', did you mean 't_choice'"),
        (["--gate", "GATE"], "rules[0].task: no task or group 't_none'"),
    ],
)
def test_names_that_are_none_are_refused(plan: Callable, tmp_path: Path, more: list[str], words: str) -> None:
    gate = tmp_path / "gate.yaml"
    gate.write_text("schema: 1\nrules:\n  - {task: t_none, max_drop: 0.05}\n", "utf-8")
    result = plan(*[gate if word == "GATE" else word for word in more])
    assert result.status == 2
    assert words.split(",")[0] in result.stderr, result.stderr


def test_without_a_plan_the_base_is_needed(run_cli: Callable, tmp_path: Path) -> None:
    result = run_cli("compare", "--suite", "pocket", "--out", tmp_path / "x")
    assert result.status == 2
    assert "with --base" in result.stderr
    assert not (tmp_path / "x").exists()
