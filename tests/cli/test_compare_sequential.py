"""`compare --sequential`: tasks stop when they are decided, and all that is printed holds at every look."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_eval.records import Comparison
from lora_eval.runstore import read_run
from lora_eval.schema import read_record
from tests.conftest import save_tiny_adapter
from tests.evaluate.test_sequential import many  # noqa: F401 (a fixture)

GATE = """\
schema: 1
rules:
  - {task: t_choice, max_drop: 0.95}
  - {task: t_generate, max_drop: 0.5, min_n: 70}
"""


@pytest.fixture(scope="module")
def merged(tiny_llama: Path, tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("merged")
    live = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tiny_adapter)
    live.merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def options(tiny_llama: Path, tiny_adapter: Path, many: Path) -> list[object]:  # noqa: F811
    arms = ["--base", tiny_llama, "--adapter", tiny_adapter]
    return [*arms, "--tasks", "t_choice,t_generate,t_last", "--include-path", many]


@pytest.fixture(scope="module")
def folder(
    options: list[object],
    merged: Path,
    run_cli: Callable,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, str, str]:
    """A finished sequential comparison with a gate: its folder, stdout and stderr."""
    out = tmp_path_factory.mktemp("sequential")
    (out / "gate.yaml").write_text(GATE, "utf-8")
    result = run_cli(
        "compare", *options, "--arm", f"shipped=merged:{merged}", "--sequential", "--gate", out / "gate.yaml",
        "--store", out / "store.sqlite", "--out", out / "out",
    )  # fmt: skip
    assert result.status == 0, result
    return out, result.stdout, result.stderr


def test_each_task_stops_by_its_rules_or_at_its_end(folder: tuple[Path, str, str]) -> None:
    comparison = read_record(folder[0] / "out" / "comparison.json", Comparison)
    tasks = {task.task: (task.scored, task.stopped) for task in comparison.sequential.tasks}
    assert tasks["t_choice"] == (53, "gate")  # a margin that nothing can miss
    assert tasks["t_generate"] == (80, "gate")  # decided before, but its rule asks for 70 items
    assert comparison.sequential.arms == ("base", "adapter")
    assert "group sequential" in comparison.sequential.method
    assert "Jennison and Turnbull" in comparison.sequential.source
    assert comparison.gate.verdict == "PASS"
    assert {check.n for check in comparison.gate.checks} == {53, 80}
    assert {check.b for check in comparison.gate.checks} == {"adapter", "shipped"}


def test_folders_answer_the_items_that_were_chosen(folder: tuple[Path, str, str]) -> None:
    runs = [read_run(folder[0] / "out" / "runs" / arm) for arm in ("base", "adapter", "shipped")]
    items = [[(row.task, row.item_id, row.prompt_sha256) for row in loaded.rows] for loaded in runs]
    assert items[0] == items[1] == items[2]
    assert len({loaded.run.suite_fingerprint for loaded in runs}) == 1


def test_the_record_says_so_in_every_pair(folder: tuple[Path, str, str]) -> None:
    comparison = read_record(folder[0] / "out" / "comparison.json", Comparison)
    looks = {task.task: task.look for task in comparison.sequential.tasks}
    for line in comparison.tasks:
        for pair in line.pairs:
            if pair.ci_low is not None:
                assert len(pair.looks) == looks[line.task]
                assert f"group sequential, look {looks[line.task]} of 3" in pair.method
    assert any(
        note.startswith("sequential: stopped early: t_choice after 53 of 120") for note in comparison.notes
    )
    assert "of 360 items were scored on every arm" in folder[2]


def test_the_reports_and_the_gate_follow_from_the_folder(
    folder: tuple[Path, str, str], run_cli: Callable
) -> None:
    out = folder[0] / "out"
    before = (out / "report.md").read_text("utf-8")
    (out / "report.md").unlink()
    assert run_cli("report", out).status == 0
    assert (out / "report.md").read_text("utf-8") == before
    assert "| t_choice | 53 of 120 | 1 of 3 | the gate's rules on it were decided |" in before
    assert "stopped early (group sequential" in before
    result = run_cli("gate", out, folder[0] / "gate.yaml", "--json")
    stored = read_record(out / "comparison.json", Comparison).gate
    assert result.status == 0
    assert json.loads(result.stdout)["checks"] == json.loads(stored.model_dump_json())["checks"]


def test_a_whole_run_afterwards_asks_only_for_the_rest(
    folder: tuple[Path, str, str], options: list[object], run_cli: Callable, tmp_path: Path
) -> None:
    store = folder[0] / "store.sqlite"
    result = run_cli("compare", *options, "--store", store, "--out", tmp_path / "whole")
    assert result.status == 0, result
    whole = read_run(tmp_path / "whole" / "runs" / "adapter").run.work
    part = read_run(folder[0] / "out" / "runs" / "adapter").run.work
    assert whole.stored_requests >= part.requests - part.stored_requests
    comparison = read_record(tmp_path / "whole" / "comparison.json", Comparison)
    assert comparison.sequential is None
    assert {line.n for line in comparison.tasks} == {120}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--method", "bootstrap"], "one look"),
        (["--method", "permutation"], "one look"),
    ],
)
def test_what_is_not_made_for_it_is_refused(
    options: list[object], run_cli: Callable, more: list[str], words: str, tmp_path: Path
) -> None:
    result = run_cli("compare", *options, "--sequential", *more, "--out", tmp_path / "x")
    assert (result.status, words in result.stderr) == (2, True), result


def test_folders_alone_are_refused(
    options: list[object], merged: Path, run_cli: Callable, tmp_path: Path
) -> None:
    alone = [*options[:2], "--arm", f"m=merged:{merged}", *options[4:]]
    result = run_cli("compare", *alone, "--sequential", "--out", tmp_path / "x")
    assert result.status == 2
    assert "give --adapter" in result.stderr


def test_a_rule_on_a_folder_alone_does_not_hold_a_task(
    options: list[object], merged: Path, run_cli: Callable, tmp_path: Path
) -> None:
    gate = tmp_path / "gate.yaml"
    gate.write_text("schema: 1\nrules:\n  - {task: t_choice, max_drop: 0.95, arm: shipped}\n", "utf-8")
    result = run_cli(
        "compare", *options, "--arm", f"shipped=merged:{merged}", "--sequential", "--gate", gate,
        "--margin", "t_choice=0.9", "--margin", "t_generate=0.9", "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert result.status == 0, result
    tasks = {task["task"]: task for task in json.loads(result.stdout)["sequential"]["tasks"]}
    assert (tasks["t_choice"]["scored"], tasks["t_choice"]["stopped"]) == (53, "verdict")


def test_training_runs_decide_as_their_mean(
    tiny_llama: Path,
    tiny_adapter: Path,
    many: Path,  # noqa: F811
    run_cli: Callable,
    tmp_path: Path,
) -> None:
    second = tmp_path / "second"
    save_tiny_adapter(tiny_llama, second, seed=5)
    result = run_cli(
        "compare", "--base", tiny_llama, "--adapter", f"a={tiny_adapter}", "--adapter", f"a={second}",
        "--tasks", "t_choice", "--include-path", many, "--margin", "t_choice=0.95", "--sequential",
        "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert result.status == 0, result
    found = Comparison.model_validate_json(result.stdout)
    assert found.sequential.arms == ("base", "a#1", "a#2")
    assert [arm.name for arm in found.arms] == ["base", "a"]
    (task,) = found.sequential.tasks
    # Two runs say so little about a third that the early looks cannot decide.
    assert (task.scored, task.stopped) == (120, "verdict")
    pair = found.tasks[0].pairs[0]
    assert pair.looks[0].variance_parts[1].source == "runs of b"
    assert pair.verdict == "not_worse"
