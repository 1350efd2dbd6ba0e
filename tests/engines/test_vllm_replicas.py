"""Copies of a model in vLLM: every request is answered once, by one of them, and told at its own place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.engines.vllm import check_arguments
from lora_eval.engines.vllm_process import EngineDied, Heard
from lora_eval.engines.vllm_replicas import VllmReplicas
from lora_eval.engines.vllm_requests import Ask, Told
from lora_eval.errors import InputError
from lora_eval.protocols import Score, ScoreRequest

PROMPTS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), max_size=20)


class Copy:
    """Answers like a model whose answer is the prompt; dies where it is told to."""

    def __init__(self, fault: str = "") -> None:
        self.asked: list[tuple[int, ...]] = []
        self.fault = fault

    def run(self, asks: Sequence[Ask], heard: Heard, *, width: int | None = None) -> None:
        for place, ask in enumerate(asks):
            self.asked.append(ask.input_ids)
            heard(place, Told(ask.input_ids, "length", 0))
        if self.fault:
            raise EngineDied(self.fault)

    def score(self, requests: Sequence[ScoreRequest], adapter: Any, heard: Any, *, width: Any = None) -> int:
        for place, request in enumerate(requests):
            self.asked.append(request.context_ids)
            heard([(place, Score(-float(sum(request.context_ids)), False, []))])
        return len(requests)

    def close(self) -> None:
        pass


@given(PROMPTS, st.integers(1, 4))
def test_every_request_is_answered_once_at_its_own_place(prompts: list[list[int]], count: int) -> None:
    copies = [Copy() for _ in range(count)]
    replicas = VllmReplicas(copies)  # type: ignore[arg-type]
    told: dict[int, Told] = {}
    asks = [Ask(tuple(prompt), {"max_tokens": 4}) for prompt in prompts]
    replicas.run(asks, told.__setitem__)
    assert [told[place].token_ids for place in range(len(asks))] == [ask.input_ids for ask in asks]
    assert sorted(ids for copy in copies for ids in copy.asked) == sorted(ask.input_ids for ask in asks)
    for copy in copies:
        copy.asked.clear()
    scores: dict[int, Score] = {}
    requests = [ScoreRequest(tuple(prompt), (1,)) for prompt in prompts]
    assert replicas.score(requests, None, scores.update) == len(requests)
    assert [scores[i].log_likelihood for i in range(len(requests))] == [-float(sum(p)) for p in prompts]
    assert sum(len(copy.asked) for copy in copies) == len(requests)


def test_the_end_of_one_copy_is_told() -> None:
    copies = [Copy(), Copy("out of memory")]
    told: dict[int, Told] = {}
    with pytest.raises(EngineDied, match="out of memory"):
        VllmReplicas(copies).run(  # type: ignore[arg-type]
            [Ask((n,), {"max_tokens": 4}) for n in range(8)], told.__setitem__
        )
    assert sorted(told) == list(range(8))  # what was answered is kept


@pytest.mark.parametrize("value", [0, -1, "two", 1.5])
def test_a_number_of_copies_that_is_none(tiny_llama: Path, value: Any) -> None:
    with pytest.raises(InputError, match="data_parallel_size must be a whole number"):
        check_arguments(tiny_llama, None, None, {"data_parallel_size": value})
