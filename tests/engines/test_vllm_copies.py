"""Two copies of a model in a real vLLM answer like transformers; vLLM is here (see tests/real_vllm.py)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lora_eval.engines.transformers import open_engine as open_transformers
from lora_eval.engines.vllm import open_engine
from lora_eval.models import Resident
from lora_eval.protocols import Engine, GenerateRequest, Score, ScoreRequest
from tests.real_vllm import needs_vllm

# Ignored: vLLM's own warnings, on import and at every start.
pytestmark = [*needs_vllm(here=True), pytest.mark.filterwarnings("ignore")]
ARMS = ("base", "tuned")


def test_two_copies_answer_like_transformers(
    tiny_llama: Path, tiny_adapter: Path, resident: Resident
) -> None:
    options = {"kv_cache_memory_bytes": 1 << 27, "max_num_seqs": 8}
    engine = open_engine(tiny_llama, {"tuned": tiny_adapter}, data_parallel_size=2, **options)
    try:
        found = {arm: _answers(engine, arm) for arm in ARMS}
    finally:
        engine.close()
    plain = open_transformers(resident)
    for arm in ARMS:
        scores, answers = _answers(plain, arm)
        assert found[arm][1] == answers
        for ours, theirs in zip(found[arm][0], scores, strict=True):
            assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, rel=1e-5, abs=1e-5)
            assert ours.is_greedy is theirs.is_greedy
    assert found["base"] != found["tuned"]


def _answers(engine: Engine, arm: str) -> tuple[list[Score], list[tuple[int, ...]]]:
    rng = random.Random(0)
    prompts = [tuple(rng.randrange(256) for _ in range(rng.randint(5, 40))) for _ in range(12)]
    scores = engine.score(arm, [ScoreRequest(prompt, (1, 2)) for prompt in prompts], lambda *_: None)
    answers = engine.generate(arm, [GenerateRequest(prompt, (), 8) for prompt in prompts], lambda *_: None)
    return scores, [answer.token_ids for answer in answers]
