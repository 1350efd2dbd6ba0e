"""The tree scorer: right for any packs and order, and no token or row of the head more than there must be."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from lora_eval.engines import packs
from lora_eval.engines.attention import installed
from lora_eval.engines.cache import PathCache
from lora_eval.engines.packs import log_probabilities
from lora_eval.engines.scoring import ScorePlan, score_plan
from lora_eval.engines.transformers import TransformersEngine
from lora_eval.engines.tree import nodes_of
from lora_eval.models import Resident
from lora_eval.protocols import Score, ScoreRequest
from lora_eval.sequences import as_bytes

MODES = pytest.mark.parametrize("fused", [True, False], ids=["fused", "masked"])


def _requests(n: int = 6) -> list[ScoreRequest]:
    """Few-shot choices of two tasks, single texts, equal requests, and one input split in several ways."""
    rng = random.Random(7)

    def draw(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(256) for _ in range(rng.randint(low, high)))

    requests = []
    for _ in range(2):
        shots = draw(18, 24)
        for _ in range(n // 2):
            context = shots + draw(1, 12)
            requests += [ScoreRequest(context, draw(1, 6)) for _ in range(4)]
    requests += [ScoreRequest(draw(1, 25), draw(1, 25)) for _ in range(n)]
    text = draw(9, 9)
    requests += [ScoreRequest(text[:cut], text[cut:]) for cut in range(1, 9)]
    requests += [requests[0], ScoreRequest(text[:3], text[3:5])]
    return requests


@contextlib.contextmanager
def _ready(resident: Resident, fused: bool, arm: str = "tuned") -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(resident.activate(arm))
        stack.enter_context(torch.inference_mode())
        if fused:
            stack.enter_context(installed(model))
        yield model


def _score(resident: Resident, requests: Sequence[ScoreRequest], tokens: int, *, fused: bool) -> list[Score]:
    with _ready(resident, fused) as model:
        plan = ScorePlan(requests)
        parts = list(score_plan(model, plan, tokens, fused=fused, count=lambda n: None))
    found = dict(answer for part in parts for answer in part)
    assert len(found) == sum(map(len, parts)) == len(requests)  # each exactly once
    return [found[number] for number in range(len(requests))]


@pytest.fixture(scope="module")
def alone(resident: Resident) -> list[tuple[np.ndarray[Any, Any], bool]]:
    """What the model says of each request when it is the only one: token by token, and whether greedy."""
    found = []
    with _ready(resident, fused=False) as model:
        for request in _requests():
            ids = torch.tensor([[*request.context_ids, *request.continuation_ids]])
            logits = model(input_ids=ids).logits[0, len(request.context_ids) - 1 : -1]
            wanted = torch.tensor(request.continuation_ids)
            values = torch.log_softmax(logits, dim=-1).gather(1, wanted[:, None])[:, 0]
            found.append((values.numpy(), bool((logits.argmax(-1) == wanted).all())))
    return found


@MODES
@pytest.mark.parametrize("tokens", [1, 7, 4096])
def test_any_packs_give_what_one_request_at_a_time_gives(
    resident: Resident, alone: list[tuple[np.ndarray[Any, Any], bool]], tokens: int, fused: bool
) -> None:
    for score, (values, greedy) in zip(
        _score(resident, _requests(), tokens, fused=fused), alone, strict=True
    ):
        assert score.token_log_probabilities == pytest.approx(values, rel=1e-5, abs=1e-5)
        assert score.log_likelihood == pytest.approx(float(values.sum(dtype=np.float64)), rel=1e-6)
        assert score.is_greedy is greedy


@MODES
def test_any_order_gives_the_same_to_the_last_digit(resident: Resident, fused: bool) -> None:
    requests = _requests()
    order = list(range(len(requests)))
    random.Random(3).shuffle(order)
    expected = _score(resident, requests, 50, fused=fused)
    found = _score(resident, [requests[number] for number in order], 50, fused=fused)
    assert found == [expected[number] for number in order]


def test_the_splits_of_one_text_add_up(resident: Resident) -> None:
    text = tuple(range(40, 60))
    requests = [ScoreRequest(text[:cut], text[cut:]) for cut in range(1, len(text))]
    whole, *rest = _score(resident, requests, 64, fused=True)
    for cut, score in enumerate(rest, start=1):
        assert score.token_log_probabilities == whole.token_log_probabilities[cut:]
    assert whole.log_likelihood == math.fsum(whole.token_log_probabilities)


def test_the_sum_is_that_of_the_tokens(resident: Resident) -> None:
    for request, score in zip(_requests(), _score(resident, _requests(), 64, fused=True), strict=True):
        assert score.log_likelihood == pytest.approx(math.fsum(score.token_log_probabilities), rel=1e-15)
        assert len(score.token_log_probabilities) == len(request.continuation_ids)


@MODES
@pytest.mark.parametrize("tokens", [3, 33, 4096])
def test_each_distinct_token_is_forwarded_once_and_the_head_runs_where_it_is_read(
    resident: Resident, tokens: int, fused: bool
) -> None:
    requests = _requests()
    inputs = [(*r.context_ids, *r.continuation_ids[:-1]) for r in requests]
    distinct = {text[: n + 1] for text in inputs for n in range(len(text))}
    read = {
        text[: n + 1]
        for text, r in zip(inputs, requests, strict=True)
        for n in range(len(r.context_ids) - 1, len(text))
    }
    forwarded: list[int] = []
    head: list[int] = []
    counted: list[int] = []
    with _ready(resident, fused) as model, contextlib.ExitStack() as hooks:
        hooks.callback(
            model.register_forward_pre_hook(
                lambda module, args, named: forwarded.append(named["input_ids"].numel()), with_kwargs=True
            ).remove
        )
        hooks.callback(
            model.get_output_embeddings()
            .register_forward_pre_hook(lambda module, args: head.append(args[0].shape[:-1].numel()))
            .remove
        )
        plan = ScorePlan(requests)
        list(score_plan(model, plan, tokens, fused=fused, count=counted.append))
    assert sum(forwarded) == sum(counted) == len(plan.tree) == len(distinct)
    assert max(forwarded) <= tokens
    assert sum(head) == len(read) < len(distinct)


@MODES
@pytest.mark.parametrize("tokens", [2, 20])
def test_the_cache_never_holds_more_than_a_path(resident: Resident, tokens: int, fused: bool) -> None:
    requests = _requests(10)
    deepest = max(len(r.context_ids) + len(r.continuation_ids) - 1 for r in requests)
    held: list[float] = []

    def look(module: Any, args: Any, named: dict[str, Any]) -> None:
        cache = named["past_key_values"]
        assert isinstance(cache, PathCache)
        for keys, values in cache.path.values():
            # By storage, not by shape: a view would keep the pack that it was cut from.
            assert keys.untyped_storage().nbytes() == keys.numel() * keys.element_size()
            assert values.untyped_storage().nbytes() == values.numel() * values.element_size()
        assert cache.get_seq_length() < deepest
        held.append(cache.get_seq_length())

    with _ready(resident, fused) as model:
        hook = model.register_forward_pre_hook(look, with_kwargs=True)
        try:
            plan = ScorePlan(requests)
            list(score_plan(model, plan, tokens, fused=fused, count=lambda n: None))
        finally:
            hook.remove()
    assert len(held) == math.ceil(len(plan.tree) / tokens)
    assert max(held) > deepest // 2


@pytest.mark.parametrize("tokens", [2, 13, 4096])
def test_a_request_is_finished_by_the_pack_of_its_last_node(resident: Resident, tokens: int) -> None:
    requests = _requests()
    plan = ScorePlan(requests)
    expected = []
    for request in requests:
        path = plan.tree.path(as_bytes((*request.context_ids, *request.continuation_ids[:-1])))
        expected.append(int(nodes_of(path, 0, 10**9)[-1]) // tokens)
    with _ready(resident, fused=True) as model:
        parts = list(score_plan(model, plan, tokens, fused=True, count=lambda n: None))
    found = {number: place for place, part in enumerate(parts) for number, _ in part}
    assert [found[number] for number in range(len(requests))] == expected


def test_the_engine_tells_of_every_score_once(resident: Resident) -> None:
    requests = _requests()
    heard: list[tuple[int, Score]] = []
    engine = TransformersEngine(resident, batch_tokens=30)
    scores = engine.score("base", requests, lambda *_: None, heard.extend)
    assert sorted(number for number, _ in heard) == list(range(len(requests)))
    assert all(scores[number] is score for number, score in heard)
    assert engine.work["forwarded_tokens"] == engine.work["distinct_tokens"] == len(ScorePlan(requests).tree)
    assert engine.work["requested_tokens"] == sum(
        len(r.context_ids) + len(r.continuation_ids) - 1 for r in requests
    )


def test_a_plan_of_nothing() -> None:
    plan = ScorePlan([])
    assert (len(plan), len(plan.tree), plan.requested_tokens) == (0, 0, 0)


def test_log_probabilities_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(11, 50, generator=generator).bfloat16()
    rows = torch.tensor([0, 0, 1, 3, 3, 3, 4, 5, 6, 7, 8, 9, 9, 10])
    targets = torch.randint(50, (len(rows),), generator=generator)
    targets[::3] = logits.argmax(-1)[rows[::3]]
    values = torch.log_softmax(logits.float(), dim=-1)[rows, targets]
    greedy = logits.float().argmax(-1)[rows] == targets
    for chunk in (1, 50, 150, 1 << 22):
        monkeypatch.setattr(packs, "_CHUNK", chunk)
        found, same = log_probabilities(logits, rows, targets)
        assert found.dtype == torch.float32
        assert torch.equal(found, values)
        assert torch.equal(same, greedy)
    assert 0 < greedy.sum() < len(rows)
