"""`lora-eval compare` under `accelerate launch`: two CPU processes give what one gives."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_eval.records import LoadedRun
from lora_eval.resources import resource_folder
from lora_eval.runstore import read_run
from tests.conftest import Result
from tests.evaluate.test_sequential import many  # noqa: F401 (a fixture)

ARMS = ("base", "tuned")


@pytest.fixture
def arguments(tiny_llama: Path, tiny_adapter: Path, tasks: Path) -> list[object]:
    names = "t_choice,t_generate,t_rolling,t_last"
    arms = ["--base", tiny_llama, "--adapter", f"tuned={tiny_adapter}"]
    return ["compare", *arms, "--tasks", names, "--include-path", tasks, "--check-reference", 4, "--json"]


@pytest.fixture
def launch(run_python: Callable[..., Result]) -> Callable[..., Result]:
    def call(*arguments: object) -> Result:
        file = resource_folder("templates") / "accelerate" / "cpu-two.yaml"
        options = ["--config_file", file, "--main_process_port", "0"]
        return run_python("-m", "accelerate.commands.launch", *options, "-m", "lora_eval", *arguments)

    return call


@pytest.mark.slow
def test_two_processes_stop_at_the_looks_of_one(
    launch: Callable[..., Result],
    run_cli: Callable[..., Result],
    tiny_llama: Path,
    tiny_adapter: Path,
    many: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    arms = ["--base", tiny_llama, "--adapter", f"tuned={tiny_adapter}", "--margin", "t_choice=0.9"]
    asked = [*arms, "--tasks", "t_choice,t_last", "--include-path", many, "--sequential", "--json"]
    found = []
    for name, run in (("two", launch), ("one", run_cli)):
        done = run("compare", *asked, "--out", tmp_path / name, "--store", "none")
        assert done.status == 0, done.stderr
        found.append(json.loads(done.stdout)["sequential"])
    assert found[0] == found[1]
    assert found[0]["tasks"][0]["scored"] == 53


@pytest.mark.slow
def test_two_processes_give_what_one_gives(
    launch: Callable[..., Result], run_cli: Callable[..., Result], arguments: list[object], tmp_path: Path
) -> None:
    found: list[dict[str, LoadedRun]] = []
    for name, run in (("two", launch), ("one", run_cli)):
        done = run(*arguments, "--out", tmp_path / name, "--store", tmp_path / f"{name}.sqlite")
        assert done.status == 0, done.stderr
        assert json.loads(done.stdout) == json.loads((tmp_path / name / "comparison.json").read_text("utf-8"))
        assert done.stderr.count("wrote ") == 1  # one process speaks
        assert done.stderr.count("against lm-eval's own model") == len(ARMS)
        found.append({arm: read_run(tmp_path / name / "runs" / arm) for arm in ARMS})
    for arm in ARMS:
        two, one = (runs[arm] for runs in found)
        assert two.rows == [approximately(row) for row in one.rows]
        for figure, expected in zip(two.run.results, one.run.results, strict=True):
            if expected.metric.endswith("perplexity"):  # a log-likelihood's exponential
                assert math.log(figure.value) == pytest.approx(math.log(expected.value), rel=1e-6)
                figure = figure.model_copy(update={"value": expected.value})
            assert figure == expected.model_copy(update={"value": pytest.approx(expected.value, rel=1e-6)})
        assert two.run.hardware["processes"] == 2
        assert two.run.work.requests == one.run.work.requests
        assert two.run.work.requested_tokens == one.run.work.requested_tokens


@pytest.mark.slow
def test_a_fault_is_said_once(launch: Callable[..., Result], arguments: list[object], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("not a comparison", "utf-8")
    done = launch(*arguments, "--out", tmp_path)
    assert done.status != 0
    assert done.stderr.count("not empty, and no comparison") == 1
    assert done.stdout == ""


def test_one_process_where_two_were_asked_for(
    run_cli: Callable[..., Result], arguments: list[object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_PORT", "29500")
    done = run_cli(*arguments, "--out", tmp_path / "out")
    assert done.status == 2
    assert "asked for several processes and started one" in done.stderr
    assert not (tmp_path / "out").exists()


def approximately(row: Any) -> Any:
    """The row with room for the last digits of what was summed in another batch; all else must be equal."""
    near = {name: None if x is None else pytest.approx(x, rel=1e-6) for name, x in row.metrics.items()}
    values = tuple(pytest.approx(x, rel=1e-6) for x in row.log_likelihoods)
    return replace(row, metrics=near, log_likelihoods=values)
