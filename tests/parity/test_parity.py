"""Our engine under lm-eval's tasks gives the numbers, texts and figures of lm-eval's own model."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_eval.engines.transformers import open_engine
from tests.parity.compare import TaskParity
from tests.parity.conftest import READS
from tests.parity.excerpts import BBH, MMLU, NOT_COMMITTED, SHARED
from tests.parity.tasks import NAMES, all_tasks

# lm-eval's own model, PEFT and the tasks' libraries, not ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
]
ARMS = ["base", "tuned"]
GENERATE = ("gsm8k", *BBH, "minerva_math500", "hendrycks_math500", "ifeval")
FEWSHOT = (*MMLU, "openbookqa", "gsm8k", *BBH)
Parities = Callable[..., dict[str, TaskParity]]


@pytest.fixture(scope="session")
def here(task_folder: Path) -> tuple[str, ...]:
    return tuple(name for name in NAMES if (task_folder / f"{name}.yaml").exists())


def _check(parity: TaskParity) -> None:
    assert parity.equal, parity
    assert parity.items >= 4


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("task", NAMES)
def test_a_task_gives_lm_evals_numbers(
    task: str, arm: str, here: tuple[str, ...], parities: Parities
) -> None:
    if task not in here:
        rows = next(t.rows for t in all_tasks() if t.name == task)
        assert rows in NOT_COMMITTED
        pytest.skip(f"{rows}: its licence keeps its data out of this repository, and {SHARED} is not there")
    _check(parities("long", arm, here)[task])


@pytest.mark.parametrize("arm", ARMS)
def test_prompts_that_are_cut_on_the_left(arm: str, here: tuple[str, ...], parities: Parities) -> None:
    """A model that reads 384 tokens: shots and passages are cut, documents are read in windows."""
    found = parities("short", arm, here)
    for parity in found.values():
        _check(parity)
    assert {*FEWSHOT} <= {name for name in here if found[name].cut}
    assert not found["lambada_openai"].cut
    assert found["wikitext"].longest > READS["short"]


@pytest.mark.parametrize("arm", ARMS)
def test_chat_template_with_shots_as_turns(arm: str, here: tuple[str, ...], parities: Parities) -> None:
    names = (*FEWSHOT, "hellaswag", "ifeval", "truthfulqa_mc1", "lambada_openai")
    found = parities("long", arm, names, chat=True)
    for parity in found.values():
        _check(parity)
    assert all(found[name].prompts != parities("long", arm, here)[name].prompts for name in names)


@pytest.mark.parametrize("arm", ARMS)
def test_answers_that_stop_at_different_places(arm: str, parities: Parities) -> None:
    found = parities("long", arm, GENERATE, until="ing|12|</s>")
    for parity in found.values():
        _check(parity)
    stops, texts = (sum(getattr(p, name) for p in found.values()) for name in ("stops", "requests"))
    assert 0 < stops < texts


class _Shuffled:
    """An engine that meets every call's requests in another order."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def _call(self, method: str, arm: str, requests: Sequence[Any], *rest: Any) -> list[Any]:
        order = list(range(len(requests)))
        random.Random(7).shuffle(order)
        answers = getattr(self._engine, method)(arm, [requests[i] for i in order], *rest)
        found = dict(zip(order, answers, strict=True))
        return [found[i] for i in range(len(requests))]

    def score(self, arm: str, requests: Sequence[Any], *rest: Any) -> list[Any]:
        return self._call("score", arm, requests, *rest)

    def generate(self, arm: str, requests: Sequence[Any], *rest: Any) -> list[Any]:
        return self._call("generate", arm, requests, *rest)


@pytest.mark.parametrize(("batch_tokens", "shuffled"), [(48, False), (700, True), (16384, True)])
def test_any_batch_size_and_order(
    batch_tokens: int, shuffled: bool, models: Callable, here: tuple[str, ...], parities: Parities
) -> None:
    engine = open_engine(models("short").resident, batch_tokens=batch_tokens)
    found = parities("short", "tuned", here, engine=_Shuffled(engine) if shuffled else engine)
    for parity in found.values():
        _check(parity)


class _Wrong(_Shuffled):
    """An engine that is a little wrong: one log-likelihood in a thousand too small, a flag, a text."""

    def score(self, arm: str, requests: Sequence[Any], *rest: Any) -> list[Any]:
        first, *others = self._engine.score(arm, requests, *rest)
        return [replace(first, log_likelihood=first.log_likelihood * 1.0001, is_greedy=True), *others]

    def generate(self, arm: str, requests: Sequence[Any], *rest: Any) -> list[Any]:
        first, *others = self._engine.generate(arm, requests, *rest)
        return [replace(first, text=first.text + "."), *others]


def test_what_is_wrong_is_seen(models: Callable, parities: Parities) -> None:
    engine = _Wrong(open_engine(models("short").resident))
    names = ("lambada_openai", "gsm8k", "wikitext")
    found = parities("short", "base", names, engine=engine)
    last, text, document = (found[name] for name in names)
    assert (last.greedy_flips, text.text_differences) == (1, 1)
    assert last.worst == pytest.approx(1e-4, rel=0.2)
    assert any(line.startswith("acc") for line in last.metrics)
    assert any("byte_perplexity" in line for line in document.metrics)
    assert not any(parity.equal for parity in found.values())
