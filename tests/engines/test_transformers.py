"""The engine against transformers, one request at a time."""

from __future__ import annotations

import random
from typing import Any

import pytest

from lora_eval.engines.transformers import TransformersEngine, max_length
from lora_eval.errors import InputError
from lora_eval.models import IDENTITY, Resident
from lora_eval.protocols import Engine, GenerateRequest, ScoreRequest

STOPS = (("e",), ("<|im_end|>",), ("a", "zz"), ("\n",), ())


def _silent(*_: Any) -> None:
    pass


def _score_requests(n: int = 40) -> list[ScoreRequest]:
    rng = random.Random(0)
    requests = [
        ScoreRequest(
            tuple(rng.randrange(256) for _ in range(rng.randint(1, 40))),
            tuple(rng.randrange(256) for _ in range(rng.randint(1, 9))),
        )
        for _ in range(n)
    ]
    context = requests[0].context_ids
    choices = [ScoreRequest(context, (token,)) for token in (10, 20, 30)]
    # One input, split in two ways: both must be scored at their own places.
    split = [ScoreRequest((1, 2, 3), (4, 5)), ScoreRequest((1, 2), (3, 4, 5))]
    return [*requests, *choices, *split]


def _one_by_one(model: Any, request: ScoreRequest) -> tuple[float, bool]:
    import torch

    ids = torch.tensor([[*request.context_ids, *request.continuation_ids]])
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, len(request.context_ids) - 1 : -1]
    wanted = torch.tensor(request.continuation_ids)
    values = torch.log_softmax(logits.float(), dim=-1).gather(1, wanted[:, None])
    return float(values.sum()), bool((logits.argmax(-1) == wanted).all())


def test_it_is_an_engine(resident: Resident) -> None:
    engine = TransformersEngine(resident)
    assert isinstance(engine, Engine)
    assert (engine.name, engine.dtype, engine.max_length) == ("transformers", "float32", 1024)
    assert engine.arms == ("base", "tuned")
    assert max_length(resident) == 1024


@pytest.mark.parametrize("arm", ["base", "tuned"])
@pytest.mark.parametrize("batch_tokens", [1, 200, None])
def test_scores_are_those_of_one_request_at_a_time(
    resident: Resident, arm: str, batch_tokens: int | None
) -> None:
    requests = _score_requests()
    steps = []
    engine = TransformersEngine(resident, batch_tokens=batch_tokens)
    scores = engine.score(arm, requests, lambda what, done, total: steps.append((done, total)))
    with resident.activate(arm) as model:
        expected = [_one_by_one(model, request) for request in requests]
    for score, (value, greedy) in zip(scores, expected, strict=True):
        assert score.log_likelihood == pytest.approx(value, rel=1e-6, abs=1e-5)
        assert score.is_greedy is greedy
    assert steps[-1][0] == steps[-1][1] == engine.work["distinct_tokens"]


def test_equal_inputs_are_forwarded_once(resident: Resident, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TransformersEngine(resident)
    shapes = []
    forward = resident.model.forward

    def counted(*arguments: Any, **named: Any) -> Any:
        shapes.append(tuple(named["input_ids"].shape))
        return forward(*arguments, **named)

    counted.__signature__ = __import__("inspect").signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(resident.model, "forward", counted)
    choices = [ScoreRequest((1, 2, 3), (token,)) for token in range(4)]
    engine.score("base", choices, _silent)
    assert shapes == [(1, 3)]


def test_greedy_continuations_are_greedy(resident: Resident) -> None:
    engine = TransformersEngine(resident)
    (answer,) = engine.generate("base", [GenerateRequest((72, 105), (), 6)], _silent)
    chosen = ScoreRequest((72, 105), answer.token_ids)
    other = ScoreRequest((72, 105), (answer.token_ids[0] ^ 1, *answer.token_ids[1:]))
    assert [score.is_greedy for score in engine.score("base", [chosen, other], _silent)] == [True, False]


def _requests(until: tuple[str, ...] = (), n: int = 24) -> list[GenerateRequest]:
    rng = random.Random(1)
    return [
        GenerateRequest(
            tuple(rng.randrange(256) for _ in range(rng.randint(2, 30))), until or STOPS[i % 5], 20
        )
        for i in range(n)
    ]


@pytest.mark.parametrize("arm", ["base", "tuned"])
def test_answers_do_not_depend_on_the_batch(resident: Resident, arm: str) -> None:
    requests = _requests()
    together = TransformersEngine(resident).generate(arm, requests, _silent)
    alone = TransformersEngine(resident, batch_tokens=1).generate(arm, requests, _silent)
    assert together == alone
    assert len({answer.text for answer in together}) > 4  # the model says different things
    assert {answer.finish_reason for answer in together} == {"stop", "length"}
    for request, answer in zip(requests, together, strict=True):
        assert not any(stop in answer.text for stop in request.until)
        assert len(answer.token_ids) == 20 if answer.finish_reason == "length" else True


def test_an_answer_ends_at_the_models_end_of_sequence(resident: Resident) -> None:
    import torch

    engine = TransformersEngine(resident)
    rows = engine.generate("base", _requests(until=("\0never",), n=8), _silent)
    first = rows[0].token_ids[0]
    settings = resident.model.generation_config
    before = settings.eos_token_id
    settings.eos_token_id = [before, first]
    try:
        (cut,) = engine.generate("base", _requests(until=("\0never",), n=1), _silent)
    finally:
        settings.eos_token_id = before
    assert (cut.token_ids, cut.finish_reason) == ((first,), "stop")
    assert torch.is_grad_enabled()


SAMPLED = {"do_sample": True, "temperature": 1.5, "top_k": 40, "top_p": 0.95}


def test_samples_depend_on_their_seed_and_not_on_their_batch(resident: Resident) -> None:
    prompts = [tuple(range(10, 14 + i)) for i in range(4)]
    requests = [GenerateRequest(ids, (), 8, SAMPLED, seed) for ids in prompts for seed in (1, 2)]
    engine = TransformersEngine(resident)
    together = engine.generate("base", requests, _silent)
    assert together == TransformersEngine(resident, batch_tokens=1).generate("base", requests, _silent)
    assert together == engine.generate("base", requests, _silent)
    assert together[0] != together[1]


def test_sampled_tokens_follow_the_models_probabilities(resident: Resident) -> None:
    import torch

    n = 2000
    requests = [
        GenerateRequest((40, 41, 42), (), 1, {"do_sample": True, "top_k": 0}, seed) for seed in range(n)
    ]
    answers = TransformersEngine(resident).generate("base", requests, _silent)
    with resident.activate("base") as model, torch.inference_mode():
        probabilities = model(input_ids=torch.tensor([[40, 41, 42]])).logits[0, -1].softmax(-1)
    likeliest = int(probabilities.argmax())
    share = sum(answer.token_ids[0] == likeliest for answer in answers) / n
    expected = float(probabilities[likeliest])
    assert abs(share - expected) < 5 * (expected * (1 - expected) / n) ** 0.5


def test_a_rule_that_reads_the_prompt_never_reads_padding(resident: Resident) -> None:
    settings = {"repetition_penalty": 1.7}
    requests = [GenerateRequest(tuple(range(60, 62 + i)), (), 10, settings) for i in range(6)]
    together = TransformersEngine(resident).generate("base", requests, _silent)
    assert together == TransformersEngine(resident, batch_tokens=1).generate("base", requests, _silent)
    plain = [GenerateRequest(r.input_ids, (), 10) for r in requests]
    assert together != TransformersEngine(resident).generate("base", plain, _silent)


def test_the_identity_arm_is_the_base_exactly(resident: Resident) -> None:
    engine = TransformersEngine(resident)
    requests = _score_requests(12)
    assert engine.score(IDENTITY, requests, _silent) == engine.score("base", requests, _silent)
    assert engine.score("tuned", requests, _silent) != engine.score("base", requests, _silent)


def test_what_it_refuses(resident: Resident) -> None:
    with pytest.raises(InputError, match="at least 1"):
        TransformersEngine(resident, batch_tokens=0)
    engine = TransformersEngine(resident)
    with pytest.raises(InputError, match="num_beams=4"):
        engine.generate("base", [GenerateRequest((1,), (), 2, {"num_beams": 4})], _silent)
    with pytest.raises(InputError, match="unknown generation settings: tempratur"):
        engine.generate("base", [GenerateRequest((1,), (), 2, {"tempratur": 1})], _silent)
