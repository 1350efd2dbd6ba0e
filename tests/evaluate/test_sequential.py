"""Arms that answer a suite look by look: the same items, none twice, until each task is decided."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lora_eval.errors import InputError
from lora_eval.evaluate import Arms, evaluate_arms, open_suite
from lora_eval.evaluate.sequential import stopped_notes
from lora_eval.records import LoadedRun, Sequential
from lora_eval.runstore import read_run
from lora_eval.stats.looks import ORDER_SEED, in_order
from tests.suites.conftest import write_tasks

N = 120
LOOKS = (53, 80, 120)


def _silent(*_: Any) -> None:
    pass


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tasks with 120 short items; `t_choice` with shots that are drawn for each item."""
    folder = write_tasks(tmp_path_factory.mktemp("many"))
    rng = random.Random(9)
    words = ["cat", "dog", "sat", "ran", "red", "blue"]
    items = [
        {
            "question": f"{rng.choice(words)} {rng.choice(words)}",
            "choices": [f"{rng.choice(words)} {i}" for i in range(2)],
            "label": rng.randrange(2),
            "topic": "x",
        }
        for _ in range(N)
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), "utf-8")
    return folder


class Decisions:
    """Stops each task at the look it is told, and remembers what it was shown."""

    def __init__(self, stops: Mapping[str, int]) -> None:
        self._stops = stops
        self.seen: list[tuple[dict[str, int], Sequential]] = []

    def __call__(self, runs: Mapping[str, LoadedRun], record: Sequential) -> dict[str, Any]:
        items = {name: len({(row.task, row.item_id) for row in run.rows}) for name, run in runs.items()}
        self.seen.append((items, record))
        return {task.task: "verdict" for task in record.tasks if task.look >= self._stops[task.task]}


@pytest.fixture(scope="module")
def sequential(
    many: Path, tiny_llama: Path, tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Decisions, Path]:
    suite = open_suite(tasks=["t_choice", "t_last", "t_generate"], include_path=str(many))
    decide = Decisions({"t_choice": 2, "t_last": 1, "t_generate": 9})
    out = tmp_path_factory.mktemp("runs")
    arms = Arms(tiny_llama, {"tuned": tiny_adapter})
    found = evaluate_arms(arms, suite, out, progress=_silent, decide=decide)
    return found, decide, out


def test_tasks_stop_at_their_look_and_the_others_go_on(sequential: Any) -> None:
    found, decide, _ = sequential
    tasks = {task.task: task for task in found.sequential.tasks}
    assert {name: (task.scored, task.look, task.stopped) for name, task in tasks.items()} == {
        "t_choice": (80, 2, "verdict"),
        "t_last": (53, 1, "verdict"),
        "t_generate": (120, 3, "end"),
    }
    assert all(task.looks == LOOKS and task.items == N for task in tasks.values())
    assert found.sequential.arms == ("base", "tuned")
    assert [items for items, _ in decide.seen] == [
        {"base": 3 * 53, "tuned": 3 * 53},
        {"base": 53 + 160, "tuned": 53 + 160},
        {"base": 53 + 80 + 120, "tuned": 53 + 80 + 120},
    ]
    tokens = tasks["t_choice"]
    assert tokens.tokens_asked == round(tokens.tokens * N / 80)


def test_runs_hold_the_first_items_of_the_random_order_for_every_arm(sequential: Any) -> None:
    found, _, _ = sequential
    runs = {name: read_run(folder) for name, folder in found.runs.items()}
    for name, scored in (("t_choice", 80), ("t_last", 53), ("t_generate", 120)):
        expected = {item for _, item in in_order(((name, i) for i in range(N)), 1234)[:scored]}
        for run in runs.values():
            assert {row.item_id for row in run.rows if row.task == name} == expected
    header = runs["base"].run
    assert header.seeds[ORDER_SEED] == 1234
    assert header.suite == "tasks (sequential)"
    assert header.suite_fingerprint == runs["tuned"].run.suite_fingerprint
    assert {result.n for result in header.results if result.task == "t_choice"} == {80}


def test_no_request_is_computed_twice_and_all_of_it_is_counted(sequential: Any) -> None:
    found, _, _ = sequential
    for folder in found.runs.values():
        run = read_run(folder).run
        assert run.work.requests == 2 * 80 + 53 + 120
        assert run.work.seconds > 0
        assert run.wall_seconds > run.work.seconds


def test_prompts_are_those_of_the_whole_run(
    sequential: Any, many: Path, tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    found, _, _ = sequential
    suite = open_suite(tasks=["t_choice", "t_last", "t_generate"], include_path=str(many))
    whole = evaluate_arms(Arms(tiny_llama, {"tuned": tiny_adapter}), suite, tmp_path, progress=_silent)
    for arm in ("base", "tuned"):
        rows = {(row.task, row.item_id, row.filter): row for row in read_run(whole.runs[arm]).rows}
        part = read_run(found.runs[arm]).rows
        assert len(part) < len(rows)
        for row in part:
            other = rows[(row.task, row.item_id, row.filter)]
            assert (row.prompt_sha256, row.output) == (other.prompt_sha256, other.output)
            assert row.log_likelihoods == pytest.approx(other.log_likelihoods, rel=1e-5)
    assert whole.sequential is None
    assert ORDER_SEED not in read_run(whole.runs["base"]).run.seeds


def test_a_reader_is_told_what_stopped_early(sequential: Any) -> None:
    found, _, _ = sequential
    saved, stopped = found.notes[-2:]
    assert saved.startswith("sequential: 253 of 360 items were scored on every arm, with ")
    assert "t_choice after 80 of 120 items (look 2 of 3); t_last after 53 of 120" in stopped
    assert "t_generate" not in stopped
    assert "over the items that were scored" in stopped
    ends = [task.model_copy(update={"scored": N}) for task in found.sequential.tasks]
    assert stopped_notes(found.sequential.model_copy(update={"tasks": tuple(ends)})) == (
        "sequential: no task was decided before all of its items were scored",
    )


def test_the_same_command_again_keeps_the_runs(
    sequential: Any, many: Path, tiny_llama: Path, tiny_adapter: Path
) -> None:
    found, decide, out = sequential
    before = (out / "base" / "run.json").read_bytes()
    steps: list[str] = []
    suite = open_suite(tasks=["t_choice", "t_last", "t_generate"], include_path=str(many))
    again = evaluate_arms(
        Arms(tiny_llama, {"tuned": tiny_adapter}), suite, out, progress=lambda *step: steps.append(step[0]),
        decide=decide,
    )  # fmt: skip
    assert again.sequential == found.sequential
    assert (out / "base" / "run.json").read_bytes() == before
    assert "base: kept from the run before" in steps
    assert any(step.startswith("look 2, tuned: ") for step in steps)


def test_a_group_is_one_task_in_one_random_order(
    many: Path, tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    suite = open_suite(tasks=["t_group"], include_path=str(many))
    found = evaluate_arms(
        Arms(tiny_llama, {"tuned": tiny_adapter}), suite, tmp_path, progress=_silent,
        decide=Decisions({"t_group": 1}),
    )  # fmt: skip
    task = found.sequential.tasks[0]
    assert (task.task, task.leaves, task.items) == ("t_group", ("t_choice", "t_last"), 240)
    rows = read_run(found.runs["tuned"]).rows
    every = in_order(((leaf, i) for leaf in task.leaves for i in range(N)), 1234)
    assert {(row.task, row.item_id) for row in rows} == set(every[: task.scored])
    figures = {r.task: r for r in read_run(found.runs["tuned"]).run.results if r.metric == "acc"}
    own = [row.metrics["acc"] for row in rows]
    assert figures["t_group"].value == pytest.approx(sum(own) / len(own))


def test_a_group_that_is_a_mean_of_its_tasks_is_looked_at_once(
    many: Path, tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    (many / "plain.yaml").write_text(
        "group: t_plain\ntask: [t_choice, t_last]\n"
        "aggregate_metric_list:\n  - {metric: acc, aggregation: mean, weight_by_size: false}\n", "utf-8"
    )  # fmt: skip
    suite = open_suite(tasks=["t_plain", "t_generate"], include_path=str(many))
    assert suite.plain_means == {"t_plain"}
    assert open_suite(tasks=["t_group"], include_path=str(many)).plain_means == frozenset()
    arms = Arms(tiny_llama, {"tuned": tiny_adapter})
    decide = Decisions({"t_plain": 1, "t_generate": 1})
    found = evaluate_arms(arms, suite, tmp_path, progress=_silent, decide=decide)
    looks = {task.task: (task.looks, task.scored) for task in found.sequential.tasks}
    assert looks == {"t_plain": ((240,), 240), "t_generate": (LOOKS, 53)}


def test_folders_alone_are_refused(many: Path, tiny_llama: Path, tmp_path: Path) -> None:
    suite = open_suite(tasks=["t_last"], include_path=str(many))
    with pytest.raises(InputError, match="decided on adapters"):
        evaluate_arms(Arms(tiny_llama), suite, tmp_path, progress=_silent, decide=Decisions({}))
