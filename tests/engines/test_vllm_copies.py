"""Two copies of a model on a real vLLM give what one gives; vLLM is in this Python (tests/real_vllm.py)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lora_eval.engines.vllm import VllmEngine, open_engine
from lora_eval.protocols import GenerateRequest, Score, ScoreRequest
from tests.real_vllm import needs_vllm

# Ignored: vLLM's own warnings, on import and at every start.
pytestmark = [*needs_vllm(here=True), pytest.mark.filterwarnings("ignore")]
ARMS = ("base", "tuned")


def test_two_copies_answer_like_one(tiny_llama: Path, tiny_adapter: Path) -> None:
    found = []
    for copies in (1, 2):
        engine = open_engine(
            tiny_llama, {"tuned": tiny_adapter}, kv_cache_memory_bytes=1 << 27, max_num_seqs=8,
            data_parallel_size=copies,
        )  # fmt: skip
        try:
            found.append({arm: _answers(engine, arm) for arm in ARMS})
        finally:
            engine.close()
    one, two = found
    for arm in ARMS:
        assert one[arm][1] == two[arm][1]
        for a, b in zip(one[arm][0], two[arm][0], strict=True):
            assert a.log_likelihood == pytest.approx(b.log_likelihood, rel=1e-5, abs=1e-5)
            assert a.is_greedy is b.is_greedy
    assert one["base"] != one["tuned"]


def _answers(engine: VllmEngine, arm: str) -> tuple[list[Score], list[tuple[int, ...]]]:
    rng = random.Random(0)
    prompts = [tuple(rng.randrange(256) for _ in range(rng.randint(5, 40))) for _ in range(12)]
    scores = engine.score(arm, [ScoreRequest(prompt, (1, 2)) for prompt in prompts], lambda *_: None)
    answers = engine.generate(arm, [GenerateRequest(prompt, (), 8) for prompt in prompts], lambda *_: None)
    return scores, [answer.token_ids for answer in answers]
