"""lm-eval's own model as an engine: its numbers, for any architecture, and nothing of the model changed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_eval.engines.transformers import TransformersEngine
from lora_eval.errors import InputError
from lora_eval.models import IDENTITY, open_resident
from lora_eval.protocols import Engine, GenerateRequest, ScoreRequest
from lora_eval.sequences import count_work
from lora_eval.suites.catalog import suite_of_tasks
from lora_eval.suites.lm_eval import LmEvalSuite
from lora_eval.suites.reference import ReferenceEngine
from tests.conftest import save_tiny_tokenizer

# lm-eval's `hf` model and PEFT under it, not ours.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
OTHERS = {
    "bloom": {"vocab_size": 320, "hidden_size": 32, "n_layer": 2, "n_head": 2},
    "rwkv": {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
    "mamba": {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
}


def _silent(*_: Any) -> None:
    pass


@pytest.fixture(scope="module")
def stock(engine: TransformersEngine) -> ReferenceEngine:
    return ReferenceEngine(engine.resident, fallback_reason="asked for")


def _requests(n: int = 20) -> list[ScoreRequest]:
    rng = random.Random(0)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(256) for _ in range(rng.randint(low, high)))

    mixed = [ScoreRequest(ids(1, 30), ids(1, 9)) for _ in range(n)]
    choices = [ScoreRequest(mixed[0].context_ids, (token,)) for token in (10, 20, 30)]
    # One input, split in two ways: HFLM itself scores the second at the first one's places.
    return [*mixed, *choices, ScoreRequest((1, 2, 3), (4, 5)), ScoreRequest((1, 2), (3, 4, 5)), mixed[0]]


@pytest.mark.parametrize("arm", ["base", "tuned", IDENTITY])
def test_scores_are_right_for_every_split(
    arm: str, engine: TransformersEngine, stock: ReferenceEngine
) -> None:
    requests = _requests()
    heard: dict[int, Any] = {}
    steps = []
    scores = stock.score(arm, requests, lambda *step: steps.append(step), heard.update)
    for score, other in zip(scores, engine.score(arm, requests, _silent), strict=True):
        assert score.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-6, abs=1e-5)
        assert score.is_greedy is other.is_greedy
    assert heard == dict(enumerate(scores))
    assert steps[-1] == (f"{arm}: scoring", len(requests), len(requests))


def test_it_is_an_engine_and_says_why_it_is_used(stock: ReferenceEngine, engine: TransformersEngine) -> None:
    assert isinstance(stock, Engine)
    assert (stock.name, stock.dtype, stock.max_length) == ("lm-eval-hf", "float32", engine.max_length)
    assert stock.arms == ("base", "tuned")
    assert stock.tokenizer is engine.tokenizer
    assert stock.fallback_reason == "asked for"
    assert ReferenceEngine(engine.resident).fallback_reason is None


@pytest.mark.parametrize("arm", ["base", "tuned"])
def test_answers_are_those_of_the_fast_engine(
    arm: str, engine: TransformersEngine, stock: ReferenceEngine
) -> None:
    rng = random.Random(1)
    stops = (("e", "a"), ("<|im_end|>",), ("o", "zz", "\n"), ())
    requests = [
        GenerateRequest(tuple(rng.randrange(256) for _ in range(rng.randint(2, 30))), stops[i % 4], 24)
        for i in range(16)
    ]
    heard: dict[int, Any] = {}
    answers = stock.generate(arm, requests, _silent, heard.update)
    assert answers == engine.generate(arm, requests, _silent)
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}
    assert heard == dict(enumerate(answers))


def test_samples_depend_on_their_seed_alone(stock: ReferenceEngine) -> None:
    import torch

    sampling = {"do_sample": True, "temperature": 1.5, "top_k": 40}
    requests = [GenerateRequest((40, 41, 42), (), 8, sampling, seed) for seed in (1, 2, 3)]
    state = torch.get_rng_state()
    answers = stock.generate("base", requests, _silent)
    assert torch.equal(torch.get_rng_state(), state)
    assert stock.generate("base", requests[::-1], _silent) == answers[::-1]
    assert len({answer.token_ids for answer in answers}) == 3
    plain = GenerateRequest((40, 41, 42), (), 8, {"do_sample": True}, 1)  # temperature: the model's own, 1
    assert stock.generate("base", [plain], _silent)[0].finish_reason == "length"
    with pytest.raises(InputError, match="tempratur"):
        stock.generate("base", [GenerateRequest((1,), (), 2, {"tempratur": 1})], _silent)


def test_work_is_counted(engine: TransformersEngine) -> None:
    stock = ReferenceEngine(engine.resident)
    choices = [ScoreRequest((1, 2, 3), (token,)) for token in range(4)]
    stock.score("base", [*choices, ScoreRequest((1, 2), (9, 9))], _silent)
    assert stock.work["requests"] == 5
    assert stock.work["requested_tokens"] == 4 * 3 + 3
    assert stock.work["distinct_tokens"] == 4
    assert stock.work["forwarded_tokens"] == 3 + 3
    assert stock.work["seconds"] > 0
    (answer,) = stock.generate("base", [GenerateRequest((5, 6), (), 4)], _silent)
    assert stock.work["requests"] == 6
    assert stock.work["forwarded_tokens"] == 6 + 2 + len(answer.token_ids) - 1  # the last is never read
    assert stock.work["requested_tokens"] == 15 + 2 + len(answer.token_ids)
    assert stock.work["distinct_tokens"] == 4 + 2 + len(answer.token_ids)
    inputs = [(1, 2), (1, 2, 3), (1, 3), (2,), (1, 2), ()]
    assert count_work(inputs, ())["distinct_tokens"] == 5


def _state(resident: Any) -> dict[str, Any]:
    model, tokenizer = resident.model, resident.tokenizer
    return {
        "pad": tokenizer.pad_token,
        "length": len(tokenizer),
        "side": tokenizer.padding_side,
        "config": model.config.to_dict(),
        "generation": model.generation_config.to_dict(),
        "training": [module.training for module in model.modules()],
        "parameters": {name: (id(p), p.shape, p._version) for name, p in model.named_parameters()},
        "own": "tie_weights" in vars(model),
    }


def test_nothing_of_the_resident_model_is_changed(tiny_llama: Path, tiny_adapter: Path) -> None:
    resident = open_resident(tiny_llama, {"tuned": tiny_adapter})
    # The two things that HFLM would change: it adds a padding token where there is none, and ties weights.
    resident.tokenizer.pad_token = None
    called = []
    tie = type(resident.model).tie_weights
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(resident.model), "tie_weights", lambda *a, **k: called.append(1) or tie(*a, **k))
        before = _state(resident)
        stock = ReferenceEngine(resident)
        stock.score("tuned", _requests(3), _silent)
        stock.generate("tuned", [GenerateRequest((1, 2), ("e",), 3)], _silent)
        assert _state(resident) == before
        assert not called
    with resident.activate("base") as model:
        assert model is resident.model


def test_the_models_own_limit_does_not_overrule_the_requests(tiny_llama: Path) -> None:
    resident = open_resident(tiny_llama)
    resident.model.generation_config.max_new_tokens = 9
    resident.model.generation_config.eos_token_id = None
    (answer,) = ReferenceEngine(resident).generate("base", [GenerateRequest((1, 2), (), 4)], _silent)
    assert (len(answer.token_ids), answer.finish_reason) == (4, "length")
    resident.model.generation_config.eos_token_id = [answer.token_ids[3]]
    (answer,) = ReferenceEngine(resident).generate("base", [GenerateRequest((1, 2), (), 4)], _silent)
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize("family", sorted(OTHERS))
def test_it_runs_what_the_fast_engine_cannot(family: str, tmp_path: Path, tasks: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    save_tiny_tokenizer(tmp_path)
    config = AutoConfig.for_model(
        family, eos_token_id=257, bos_token_id=None, pad_token_id=258, **OTHERS[family]
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    resident = open_resident(tmp_path)
    reason = TransformersEngine(resident).fallback_reason
    assert reason
    stock = ReferenceEngine(resident, fallback_reason=reason)
    requests = _requests(4)
    scores = stock.score("base", requests, _silent)
    for request, score in zip(requests, scores, strict=True):
        ids = torch.tensor([[*request.context_ids, *request.continuation_ids]])
        with torch.inference_mode():
            logits = stock.resident.model(ids[:, :-1]).logits[0, len(request.context_ids) - 1 :]
        wanted = torch.tensor(request.continuation_ids)[:, None]
        value = torch.log_softmax(logits.float(), -1).gather(1, wanted).sum()
        assert score.log_likelihood == pytest.approx(float(value), rel=1e-5)
    rows = LmEvalSuite(*suite_of_tasks(["t_choice", "t_generate"], str(tasks)), limit=2).run(
        stock, "base", _silent
    )
    assert len(rows.rows) == 2 + 2 * 2
    assert all(value is not None for row in rows.rows for value in row.metrics.values())


def test_a_suite_on_it_gives_lm_evals_figures_exactly(
    tasks: Path, stock: ReferenceEngine, reference: Callable
) -> None:
    names = ["t_choice", "t_generate", "t_rolling", "t_last"]
    found = LmEvalSuite(*suite_of_tasks(names, str(tasks))).run(stock, "tuned", _silent)
    theirs = reference("tuned", names, tasks)["results"]
    for result in found.results:
        assert result.value == theirs[result.task][f"{result.metric},{result.filter}"], result
