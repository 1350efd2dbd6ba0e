"""`--check-reference`: it is silent where the numbers are lm-eval's, and counts what is not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_eval.engines.transformers import TransformersEngine, open_engine
from lora_eval.errors import ControlFailed, InputError
from lora_eval.evaluate import open_suite
from lora_eval.evaluate.reference import check_reference, compare_rows
from lora_eval.evaluate.selection import drawn, some_of_each
from lora_eval.models import open_resident
from lora_eval.protocols import Generation, Score
from lora_eval.records import SampleRow
from lora_eval.reports.controls import reference_line
from lora_eval.suites.combined import CombinedSuite
from lora_eval.suites.lm_eval import LmEvalSuite

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
NAMES = ["t_choice", "t_generate", "t_rolling", "t_last"]


def _silent(*_: Any) -> None:
    pass


@pytest.fixture(scope="module")
def engine(tiny_llama: Path, tiny_adapter: Path) -> TransformersEngine:
    return open_engine(open_resident(tiny_llama, {"tuned": tiny_adapter}))


@pytest.fixture(scope="module")
def everything(tasks: Path) -> LmEvalSuite:
    found = open_suite(tasks=NAMES, include_path=str(tasks))
    assert isinstance(found, LmEvalSuite)
    return found


def test_in_float32_the_engine_is_lm_eval(engine: TransformersEngine, everything: LmEvalSuite) -> None:
    steps = []
    check = check_reference(engine, everything, "tuned", 16, lambda *step: steps.append(step[0]))
    assert (check.arm, check.engine, check.dtype) == ("tuned", "transformers", "float32")
    assert (check.items, check.seed) == (16, everything.record.seed)
    drawn_items = drawn(everything, 16, check.seed)
    each = {"t_choice": 3, "t_generate": 1, "t_rolling": 1, "t_last": 1}  # requests of an item
    assert check.requests == sum(each[name] * len(items) for name, items in drawn_items.items())
    assert check.max_relative_difference < 1e-5
    assert (check.choice_flips, check.metric_flips, check.text_differences) == (0, 0, 0)
    found = (check.choices, check.texts)
    assert found == (len(drawn_items["t_choice"]), len(drawn_items["t_generate"]))
    assert set(steps) == {"reference check", "reference check, lm-eval"}
    line = reference_line(check)
    assert f"0 of {found[0]} choices flip; 0 of {found[1]} texts differ" in line
    assert "rounds" not in line


def test_in_bfloat16_it_says_by_how_much(tiny_llama: Path, everything: LmEvalSuite) -> None:
    engine = open_engine(open_resident(tiny_llama, dtype="bfloat16"))
    check = check_reference(engine, everything, "base", 40, _silent)
    assert 1e-4 < check.max_relative_difference < 0.05
    assert check.max_difference >= check.mean_difference > 0
    assert reference_line(check).endswith("lm-eval itself rounds log-likelihoods to bfloat16")


def test_a_wrong_engine_is_seen(
    engine: TransformersEngine, everything: LmEvalSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(arm: str, requests: Any, progress: Any, finished: Any = None) -> list[Score]:
        return [Score(-float(1 + index * 7 % 11), True) for index in range(len(requests))]

    def generate(arm: str, requests: Any, progress: Any, finished: Any = None) -> list[Generation]:
        return [Generation("cat", (1,), "stop") for _ in requests]

    monkeypatch.setattr(engine, "score", score)
    monkeypatch.setattr(engine, "generate", generate)
    check = check_reference(engine, everything, "base", 56, _silent)
    assert check.max_relative_difference > 0.1
    assert check.choice_flips > 0
    assert check.text_differences == check.texts == 14
    assert check.metric_flips >= 14  # every greedy flag of `t_last`


def test_how_many_items_it_costs(engine: TransformersEngine, tasks: Path) -> None:
    parts = [open_suite(tasks=[name], include_path=str(tasks)) for name in ("t_choice", "t_last")]
    both = CombinedSuite(parts)
    assert check_reference(engine, both, "base", 6, _silent).items == 6
    assert check_reference(engine, both, "base", 1, _silent).items == 1  # whatever the number of tasks
    assert check_reference(engine, both, "base", 99, _silent).items == 28  # all that there are
    with pytest.raises(InputError, match="at least 1 item, got 0"):
        check_reference(engine, both, "base", 0, _silent)


def test_items_are_drawn_from_all_tasks_together(everything: LmEvalSuite) -> None:
    draws = [drawn(everything, 12, seed) for seed in range(400)]
    assert {sum(map(len, found.values())) for found in draws} == {12}
    assert draws[0] == drawn(everything, 12, 0) != draws[1]
    assert any(len(found) < 4 for found in draws)  # no task has a right to an item
    counted = Counter(task for found in draws for task, items in found.items() for _ in items)
    whole = {name: len(items) for name, items in everything.items.items()}
    for name, n in whole.items():
        assert counted[name] / (12 * 400) == pytest.approx(n / sum(whole.values()), abs=0.03)
    assert all(set(items) <= set(everything.items[task]) for found in draws for task, items in found.items())


def test_controls_see_every_task(tasks: Path) -> None:
    suite = open_suite(tasks=["t_group", "t_generate"], include_path=str(tasks))
    chosen = some_of_each(suite, 8)
    assert {name: len(items) for name, items in chosen.items()} == {
        "t_choice": 4,
        "t_last": 4,
        "t_generate": 8,
    }
    assert chosen["t_last"] == [0, 3, 7, 10]
    assert some_of_each(suite, 1) == {"t_choice": [0], "t_last": [0], "t_generate": [0]}


def test_an_engine_without_a_model_here_is_refused(
    engine: TransformersEngine, everything: LmEvalSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "resident", None)
    with pytest.raises(InputError, match="'transformers' holds no model"):
        check_reference(engine, everything, "base", 4, _silent)


def _row(**values: Any) -> SampleRow:
    row = SampleRow("t", 0, "d", "none", 0, "p", "prompt", "target", "out", {"acc": 1.0, "p": -3.0})
    return replace(row, **values)


def test_rows_are_counted_once_for_each_item() -> None:
    filters = [_row(filter="a", metrics={"em": 1.0}), _row(filter="b", metrics={"em": None})]
    other = [_row(filter="a", metrics={"em": 0.0}), _row(filter="b", metrics={"em": None})]
    check = compare_rows(filters, other, arm="x", engine="e", dtype="float32", seed=1)
    assert (check.items, check.texts, check.metrics, check.metric_flips) == (1, 1, 1, 1)
    assert (check.max_difference, check.mean_difference, check.max_relative_difference) == (None,) * 3
    assert reference_line(check) == (
        "x in float32 against lm-eval's own model: 0 of 1 texts differ; 1 of 1 yes/no figures differ"
    )


def test_other_prompts_are_an_error() -> None:
    for theirs in ([_row(prompt_sha256="q")], []):
        with pytest.raises(ControlFailed, match="other prompts"):
            compare_rows([_row()], theirs, arm="x", engine="e", dtype="float32", seed=1)
