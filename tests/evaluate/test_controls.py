"""Controls: an engine that lies about one number, text or figure of one item of one task is found out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_eval.engines.transformers import TransformersEngine
from lora_eval.errors import ControlFailed
from lora_eval.evaluate import open_suite
from lora_eval.evaluate.controls import CONTROL_ITEMS, check_controls
from lora_eval.models import IDENTITY, open_resident
from lora_eval.suites.lm_eval import LmEvalSuite

LAST = -1


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> TransformersEngine:
    return TransformersEngine(open_resident(tiny_llama, identity_control=True))


@pytest.fixture(scope="module")
def three(tasks: Path) -> LmEvalSuite:
    """Multiple choice, a log-likelihood and a generated answer."""
    found = open_suite(tasks=["t_choice", "t_last", "t_generate"], include_path=str(tasks))
    assert isinstance(found, LmEvalSuite)
    return found


class Lying:
    """An engine that alters the last answer of one kind on one arm, from one call on."""

    def __init__(self, engine: Any, lie: Callable[[Any], Any], *, kind: str, arm: str, call: int) -> None:
        self._engine, self._lie, self._kind, self._arm, self._call = engine, lie, kind, arm, call
        self._calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def score(self, arm: str, requests: Sequence[Any], *rest: Any) -> list[Any]:
        return self._altered("score", arm, self._engine.score(arm, requests, *rest))

    def generate(self, arm: str, requests: Sequence[Any], *rest: Any) -> list[Any]:
        return self._altered("generate", arm, self._engine.generate(arm, requests, *rest))

    def _altered(self, kind: str, arm: str, answers: list[Any]) -> list[Any]:
        if (kind, arm) == (self._kind, self._arm):
            self._calls += 1
            if self._calls >= self._call:
                answers[LAST] = self._lie(answers[LAST])
        return answers


def silent(*_: object) -> None:
    """No progress."""


def next_number(score: Any) -> Any:
    """The smallest lie there is: the next number that a float can hold."""
    import math

    return dataclasses.replace(score, log_likelihood=math.nextafter(score.log_likelihood, 0.0))


def test_an_honest_engine_passes_on_a_sample_of_every_task(
    engine: TransformersEngine, three: LmEvalSuite
) -> None:
    found = check_controls(engine, three, "base", silent)
    expected = {"tasks": 3, "items": 3 * CONTROL_ITEMS, "differences": 0, "passed": True}
    assert {name: found[name] for name in ("identity", "determinism")} == {
        "identity": expected,
        "determinism": expected,
    }
    assert "identity" not in check_controls(engine, three, "base", silent, identity=False)


@pytest.mark.parametrize(
    ("kind", "lie", "says"),
    [
        ("score", next_number, "log-likelihoods"),
        ("score", lambda s: dataclasses.replace(s, is_greedy=not s.is_greedy), "figures"),
        ("generate", lambda g: dataclasses.replace(g, text=g.text + "x"), "answers"),
    ],
)
@pytest.mark.parametrize(("control", "arm", "call"), [("determinism", "base", 2), ("identity", IDENTITY, 1)])
def test_a_lie_about_one_answer_is_found(
    engine: TransformersEngine,
    three: LmEvalSuite,
    kind: str,
    lie: Callable[[Any], Any],
    says: str,
    control: str,
    arm: str,
    call: int,
) -> None:
    lying = Lying(engine, lie, kind=kind, arm=arm, call=call)
    with pytest.raises(ControlFailed, match=f"control '{control}'.*on 1 of 24 items, first task .*{says}"):
        check_controls(lying, three, "base", silent)


def test_nothing_is_compared_through_a_lying_engine(
    engine: TransformersEngine, three: LmEvalSuite, tiny_llama: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from lora_eval.evaluate import Arms, evaluate_arms
    from lora_eval.evaluate.scorers import Scorer, Scorers

    lying = Lying(engine, next_number, kind="score", arm=IDENTITY, call=1)
    monkeypatch.setattr(Scorers, "shared", lambda *_: Scorer(lying, ()))
    with pytest.raises(ControlFailed) as caught:
        evaluate_arms(Arms(tiny_llama), three, tmp_path / "out", progress=silent)
    assert caught.value.exit_status == 3
    assert not (tmp_path / "out").exists()
