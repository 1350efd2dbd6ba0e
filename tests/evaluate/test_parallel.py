"""A suite under `accelerate launch`: two CPU processes give what one gives.

`python -m tests.evaluate.test_parallel JOB FOLDER BASE ADAPTER TASKS` is what each of the processes runs.
"""

from __future__ import annotations

import math
import pickle
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_eval.engines.parallel import ParallelEngine, Processes, connected
from lora_eval.engines.transformers import TransformersEngine
from lora_eval.errors import InputError
from lora_eval.evaluate import open_suite
from lora_eval.models import open_resident
from lora_eval.protocols import Engine, SuiteResult
from lora_eval.resources import resource_folder
from tests.conftest import CHECKOUT, Result

NAMES = ("t_choice", "t_generate", "t_rolling", "t_last")
ARMS = ("base", "tuned")


@pytest.fixture
def launch(
    run_python: Callable[..., Result], tiny_llama: Path, tiny_adapter: Path, tasks: Path, tmp_path: Path
) -> Callable[[str], Result]:
    def call(job: str) -> Result:
        file = resource_folder("templates") / "accelerate" / "cpu-two.yaml"
        options = ["--config_file", file, "--main_process_port", "0"]
        own = ["-m", __name__, job, tmp_path, tiny_llama, tiny_adapter, tasks]
        return run_python("-m", "accelerate.commands.launch", *options, *own, cwd=CHECKOUT)

    return call


@pytest.mark.slow
def test_two_processes_give_what_one_gives(
    launch: Callable[[str], Result], tiny_llama: Path, tiny_adapter: Path, tasks: Path, tmp_path: Path
) -> None:
    done = launch("all")
    assert done.status == 0, done.stderr
    first, second = (pickle.loads((tmp_path / f"{number}.pickle").read_bytes()) for number in range(2))
    assert first == second
    one = run_all(TransformersEngine(open_resident(tiny_llama, {"tuned": tiny_adapter})), tasks)
    assert list(first) == list(one)
    for key, wanted in one.items():
        got: SuiteResult = first[key]
        assert got.rows == [approximately(row) for row in wanted.rows]
        for figure, expected in zip(got.results, wanted.results, strict=True):
            if expected.metric.endswith("perplexity"):  # a log-likelihood's exponential
                assert math.log(figure.value) == pytest.approx(math.log(expected.value), rel=1e-6)
                figure = figure.model_copy(update={"value": expected.value})
            assert figure == expected.model_copy(update={"value": pytest.approx(expected.value, rel=1e-6)})
        assert (got.task_versions, got.notes) == (wanted.task_versions, wanted.notes)
    assert len(one["tuned", 1].rows) < len(one["tuned", None].rows)


@pytest.mark.slow
def test_a_process_that_fails_ends_the_launch(launch: Callable[[str], Result], tmp_path: Path) -> None:
    done = launch("fail")
    assert done.status != 0
    assert "Error: process 1: the second process cannot open its model" in done.stderr
    assert not list(tmp_path.glob("*.pickle"))


def approximately(row: Any) -> Any:
    """The row with room for the last digits of what was summed in another batch; all else must be equal."""
    near = {name: None if x is None else pytest.approx(x, rel=1e-6) for name, x in row.metrics.items()}
    values = tuple(pytest.approx(x, rel=1e-6) for x in row.log_likelihoods)
    return replace(row, metrics=near, log_likelihoods=values)


def run_all(engine: Engine, tasks: Path) -> dict[tuple[str, int | None], SuiteResult]:
    """The tasks on both arms: all items, and one of each task (then a process may have nothing to do)."""
    found = {}
    for limit in (None, 1):
        suite = open_suite(tasks=NAMES, include_path=str(tasks), limit=limit)
        for arm in ARMS:
            found[arm, limit] = suite.run(engine, arm, lambda what, done, total: None)
    return found


def main(arguments: Sequence[str]) -> int:
    job, *folders = arguments
    try:
        with connected() as processes:
            if job == "fail" and not processes.is_first:
                raise InputError("the second process cannot open its model")
            processes.together("opening", lambda: None)
            work(processes, *map(Path, folders))
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def work(processes: Processes, folder: Path, base: Path, adapter: Path, tasks: Path) -> None:
    engine = TransformersEngine(open_resident(base, {"tuned": adapter}))
    found = run_all(ParallelEngine(engine, processes), tasks)
    (folder / f"{processes.number}.pickle").write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
