"""`--check-reference`: it is silent where the numbers are lm-eval's, and counts what is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_eval.engines.transformers import TransformersEngine, open_engine
from lora_eval.errors import ControlFailed, InputError
from lora_eval.evaluate import open_suite
from lora_eval.evaluate.reference import check_reference, compare_rows
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
    assert check.items == 16
    assert check.requests == 4 * 3 + 4 + 4 + 4  # three choices; a text, a document and an ending
    assert check.max_relative_difference < 1e-5
    assert (check.choice_flips, check.metric_flips, check.text_differences) == (0, 0, 0)
    assert (check.choices, check.texts) == (4, 4)
    assert set(steps) == {"reference check", "reference check, lm-eval"}
    line = reference_line(check)
    assert "0 of 4 choices flip; 0 of 4 texts differ" in line
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
    assert check_reference(engine, both, "base", 1, _silent).items == 2  # one of every task
    with pytest.raises(InputError, match="at least 1 item, got 0"):
        check_reference(engine, both, "base", 0, _silent)


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
    check = compare_rows(filters, other, arm="x", engine="e", dtype="float32")
    assert (check.items, check.texts, check.metrics, check.metric_flips) == (1, 1, 1, 1)
    assert (check.max_difference, check.mean_difference, check.max_relative_difference) == (None,) * 3
    assert reference_line(check) == (
        "x in float32 against lm-eval's own model: 0 of 1 texts differ; 1 of 1 yes/no figures differ"
    )


def test_other_prompts_are_an_error() -> None:
    for theirs in ([_row(prompt_sha256="q")], []):
        with pytest.raises(ControlFailed, match="other prompts"):
            compare_rows([_row()], theirs, arm="x", engine="e", dtype="float32")
