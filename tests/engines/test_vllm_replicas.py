"""Copies of a model in vLLM: every request is answered once, by one of them, and told at its own place."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.engines.vllm import VllmEngine, check_arguments, open_engine
from lora_eval.engines.vllm_process import EngineDied, Heard
from lora_eval.engines.vllm_replicas import VllmReplicas
from lora_eval.engines.vllm_requests import Ask, Told
from lora_eval.errors import InputError
from lora_eval.protocols import GenerateRequest, Score, ScoreRequest
from tests.real_vllm import needs_vllm

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


@pytest.mark.filterwarnings("ignore")
class TestRealVllm:
    """Two copies on a real vLLM give what one gives."""

    pytestmark = needs_vllm(here=True)

    def test_two_copies_answer_like_one(self, tiny_llama: Path, tiny_adapter: Path) -> None:
        found = []
        for options in ({}, {"data_parallel_size": 2}):
            engine = open_engine(
                tiny_llama, {"tuned": tiny_adapter}, kv_cache_memory_bytes=1 << 27, max_num_seqs=8, **options
            )
            try:
                found.append([self._answers(engine, arm) for arm in ("base", "tuned")])
            finally:
                engine.close()
        for one, two in zip(*found, strict=True):
            assert one[1] == two[1]
            assert [s.is_greedy for s in one[0]] == [s.is_greedy for s in two[0]]
            for a, b in zip(one[0], two[0], strict=True):
                assert a.log_likelihood == pytest.approx(b.log_likelihood, rel=1e-5, abs=1e-5)

    @staticmethod
    def _answers(engine: VllmEngine, arm: str) -> tuple[list[Score], list[tuple[int, ...]]]:
        rng = random.Random(0)
        prompts = [tuple(rng.randrange(256) for _ in range(rng.randint(5, 40))) for _ in range(12)]
        scores = engine.score(arm, [ScoreRequest(p, (1, 2)) for p in prompts], lambda *_: None)
        answers = engine.generate(arm, [GenerateRequest(p, (), 8, {}, 0) for p in prompts], lambda *_: None)
        return scores, [answer.token_ids for answer in answers]
