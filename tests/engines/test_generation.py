"""Answers against `model.generate` with lm-eval's own stop criteria, one prompt at a time."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from lora_eval.engines.attention import installed
from lora_eval.engines.generation import Draft, Generator, Limits
from lora_eval.engines.packs import PackRunner
from lora_eval.engines.slots import Slots
from lora_eval.engines.tree import TokenTree
from lora_eval.models import Resident
from lora_eval.protocols import GenerateRequest, Generation
from lora_eval.sequences import as_bytes

MODES = pytest.mark.parametrize("fused", [True, False], ids=["fused", "masked"])
STOPS = (("e",), ("<|im_end|>",), ("a", "zz"), ("\n", "t"), ())
WIDE = Limits(pack_tokens=256, rows=8, slot_bytes=1 << 28)
Tokens = tuple[int, ...]


def _draw(rng: random.Random, low: int, high: int) -> Tokens:
    return tuple(rng.randrange(256) for _ in range(rng.randint(low, high)))


def _requests() -> list[GenerateRequest]:
    """Two tasks with long prefixes of their own, prompts that share nothing, prompts that are beginnings of
    one another, and equal ones; stop texts and lengths are mixed.
    """
    rng = random.Random(2)
    tasks = [_draw(rng, 20, 20), _draw(rng, 33, 33)]
    prompts = [task + _draw(rng, 1, 12) for task in tasks for _ in range(7)]
    prompts += [_draw(rng, 1, 30) for _ in range(6)]
    stem = _draw(rng, 12, 12)
    prompts += [stem[:n] for n in (2, 3, 7, 12)]
    prompts += [prompts[0], prompts[0], prompts[-1]]
    rng.shuffle(prompts)
    return [GenerateRequest(p, STOPS[n % 5], 1 + (n * 5) % 13) for n, p in enumerate(prompts)]


@dataclass
class Run:
    """Answers in order; what was counted; how many rows each step of decoding had."""

    answers: list[Generation]
    work: Counter[str]
    steps: list[int] = field(default_factory=list)


def _run(
    resident: Resident,
    requests: Sequence[GenerateRequest],
    limits: Limits = WIDE,
    *,
    fused: bool = True,
    draft: Draft = lambda request: (),
) -> Run:
    run = Run([], Counter())

    def look(module: Any, args: Any, named: dict[str, Any]) -> None:
        run.work["seen"] += named["input_ids"].numel()
        if isinstance(named["past_key_values"], Slots):
            run.steps.append(len(named["input_ids"]))

    def count(name: str, number: int) -> None:
        run.work[name] += number

    with contextlib.ExitStack() as stack:
        model = stack.enter_context(resident.activate("tuned"))
        stack.enter_context(torch.inference_mode())
        if fused:
            stack.enter_context(installed(model))
        stack.callback(model.register_forward_pre_hook(look, with_kwargs=True).remove)
        generator = Generator(model, resident.tokenizer, limits, fused=fused, count=count, draft=draft)
        parts = list(generator.run(requests))
    found = dict(answer for part in parts for answer in part)
    assert len(found) == sum(map(len, parts)) == len(requests)  # each exactly once
    run.answers = [found[number] for number in range(len(requests))]
    assert run.work["seen"] == run.work["forwarded_tokens"]
    return run


def _alone(resident: Resident, request: GenerateRequest) -> Tokens:
    """The new tokens of `model.generate` as lm-eval calls it at batch size 1."""
    from lm_eval.models.utils_hf import stop_sequences_criteria

    length = len(request.input_ids)
    with resident.activate("tuned") as model:
        made = model.generate(
            input_ids=torch.tensor([request.input_ids]),
            attention_mask=torch.ones(1, length, dtype=torch.long),
            max_length=length + request.max_new_tokens,
            stopping_criteria=stop_sequences_criteria(resident.tokenizer, list(request.until), length, 1),
            pad_token_id=resident.tokenizer.pad_token_id,
            **{"do_sample": False, **request.sampling},
        )
    return tuple(made[0, length:].tolist())


@pytest.fixture(scope="module")
def expected(resident: Resident) -> list[Tokens]:
    return [_alone(resident, request) for request in _requests()]


def _check(run: Run, requests: Sequence[GenerateRequest], expected: Sequence[Tokens]) -> None:
    assert [answer.token_ids for answer in run.answers] == list(expected)
    for request, answer in zip(requests, run.answers, strict=True):
        assert not any(text in answer.text for text in request.until)
        assert answer.finish_reason in ("stop", "length")
        if answer.finish_reason == "length":
            assert len(answer.token_ids) == request.max_new_tokens


LIMITS = [WIDE, Limits(1, 3, 1 << 28), Limits(40, 64, 1), Limits(7, 2, 1 << 28)]


@MODES
@pytest.mark.parametrize("limits", LIMITS, ids=["wide", "one token packs", "one slot", "narrow"])
def test_answers_are_those_of_generate_alone(
    resident: Resident, expected: list[Tokens], limits: Limits, fused: bool
) -> None:
    requests = _requests()
    run = _run(resident, requests, limits, fused=fused)
    _check(run, requests, expected)
    assert {answer.finish_reason for answer in run.answers} == {"stop", "length"}
    assert max(run.steps) <= (1 if limits.slot_bytes == 1 else limits.rows)


def test_any_order_gives_the_same_answers(resident: Resident, expected: list[Tokens]) -> None:
    requests = _requests()
    order = list(range(len(requests)))
    random.Random(4).shuffle(order)
    run = _run(resident, [requests[n] for n in order])
    _check(run, [requests[n] for n in order], [expected[n] for n in order])


@MODES
def test_an_end_of_sequence_token_ends_its_row_only(
    resident: Resident, expected: list[Tokens], monkeypatch: pytest.MonkeyPatch, fused: bool
) -> None:
    common = Counter(token for tokens in expected for token in tokens[1:-1]).most_common(2)
    ends = [257, *(token for token, _ in common)]
    monkeypatch.setattr(resident.model.generation_config, "eos_token_id", ends)
    requests = _requests()
    cut = [_alone(resident, request) for request in requests]
    assert cut != expected
    _check(_run(resident, requests, Limits(30, 3, 1 << 28), fused=fused), requests, cut)


def test_a_freed_slot_is_filled_before_the_next_step(resident: Resident) -> None:
    rng = random.Random(5)
    requests = [GenerateRequest(_draw(rng, 3, 9), (), 2 + n % 6) for n in range(11)]
    for pack_tokens in (1, 200):
        run = _run(resident, requests, Limits(pack_tokens, 3, 1 << 28))
        new = [len(answer.token_ids) for answer in run.answers]
        assert sum(run.steps) == sum(new) - len(new)  # the first comes with the prompt
        # Three rows in every step, until nobody is left to enter.
        assert run.steps == sorted(run.steps, reverse=True)
        assert run.steps.count(3) >= (sum(new) - len(new)) // 3 - max(new)
        assert run.steps[0] == 3
        prompts = TokenTree(as_bytes(request.input_ids) for request in requests)
        assert run.work["forwarded_tokens"] == len(prompts) + sum(run.steps)


def test_the_prefix_of_a_group_is_forwarded_once(resident: Resident) -> None:
    rng = random.Random(6)
    shots = _draw(rng, 50, 50)
    requests = [GenerateRequest((*shots, n, *_draw(rng, 1, 5)), (), 4) for n in range(9)]
    run = _run(resident, requests, Limits(16, 2, 1 << 28))
    assert [len(answer.token_ids) for answer in run.answers] == [4] * 9
    own = sum(len(request.input_ids) - 50 for request in requests)
    assert run.work["forwarded_tokens"] == 50 + own + 9 * 3


WRONG = {
    "right": lambda a: a,
    "wrong from the first": lambda a: (a[0] ^ 1, *a[1:]),
    "wrong in the middle": lambda a: (*a[: len(a) // 2], a[len(a) // 2] ^ 1, *a[len(a) // 2 + 1 :]),
    "wrong at the end": lambda a: (*a[:-1], a[-1] ^ 1),
    "too long": lambda a: (*a, 5, 6, 7),
    "too short": lambda a: a[: len(a) // 2],
    "all wrong": lambda a: tuple(token ^ 1 for token in a),
}


@MODES
@pytest.mark.parametrize("kind", WRONG)
def test_drafts_change_no_answer(resident: Resident, expected: list[Tokens], kind: str, fused: bool) -> None:
    requests = _requests()
    drafts = {id(r): tuple(WRONG[kind](a)) for r, a in zip(requests, expected, strict=True)}
    run = _run(resident, requests, Limits(50, 4, 1 << 28), fused=fused, draft=lambda r: drafts[id(r)])
    _check(run, requests, expected)
    assert 0 <= run.work["accepted_tokens"] <= run.work["drafted_tokens"]
    if kind == "all wrong":
        assert run.work["accepted_tokens"] == 0
    if kind in ("right", "too long"):
        assert run.work["accepted_tokens"] == sum(map(len, expected))
        assert not run.steps


def test_right_drafts_cost_one_pass_over_prompts_and_answers(resident: Resident) -> None:
    rng = random.Random(8)
    requests = [GenerateRequest((n, *_draw(rng, 3, 9)), STOPS[n % 5], 6 + n % 4) for n in range(12)]
    plain = _run(resident, requests)
    drafts = {r.input_ids: a.token_ids for r, a in zip(requests, plain.answers, strict=True)}
    run = _run(resident, requests, Limits(32, 4, 1 << 28), draft=lambda r: drafts[r.input_ids])
    assert run.answers == plain.answers
    new = sum(len(answer.token_ids) for answer in plain.answers)
    assert run.work["drafted_tokens"] == run.work["accepted_tokens"] == new
    # An answer's last token is never read.
    assert run.work["forwarded_tokens"] == sum(len(r.input_ids) - 1 for r in requests) + new
    assert not run.steps
    assert plain.work["drafted_tokens"] == plain.work["accepted_tokens"] == 0


def test_wrong_drafts_are_given_up_after_four_rows(resident: Resident) -> None:
    rng = random.Random(9)
    requests = [GenerateRequest((n, *_draw(rng, 3, 9)), (), 8) for n in range(16)]
    plain = _run(resident, requests)
    drafts = {
        r.input_ids: WRONG["all wrong"](a.token_ids) for r, a in zip(requests, plain.answers, strict=True)
    }
    run = _run(resident, requests, draft=lambda r: drafts[r.input_ids])
    assert run.answers == plain.answers
    assert (run.work["drafted_tokens"], run.work["accepted_tokens"]) == (4 * 8, 0)
    assert run.work["forwarded_tokens"] == plain.work["forwarded_tokens"] + 4 * 7


RULES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.4},
    {"no_repeat_ngram_size": 1},
    {"min_new_tokens": 6},
    {"suppress_tokens": [10, 11, 12, 65, 66]},
    {"begin_suppress_tokens": list(range(128, 256))},
    {"bad_words_ids": [[65], [70, 71]]},
    {"forced_eos_token_id": 257},
    {"exponential_decay_length_penalty": (2, 1.8)},
    {"repetition_penalty": 1.2, "no_repeat_ngram_size": 1, "min_length": 10},
]


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: ", ".join(rules))
def test_the_models_own_rules_are_applied_as_generate_does(
    resident: Resident, expected: list[Tokens], monkeypatch: pytest.MonkeyPatch, rules: dict[str, Any]
) -> None:
    common = Counter(token for tokens in expected for token in tokens).most_common(1)[0][0]
    own = resident.model.generation_config
    monkeypatch.setattr(own, "eos_token_id", [257, common])
    requests = [replace(request, max_new_tokens=9) for request in _requests()[::2]]
    without = [_alone(resident, request) for request in requests]
    for name, value in rules.items():
        monkeypatch.setattr(own, name, value)
    wanted = [_alone(resident, request) for request in requests]
    assert wanted != without  # the rule matters here
    right = {request.input_ids: answer for request, answer in zip(requests, wanted, strict=True)}
    for draft in (lambda r: (), lambda r: right[r.input_ids]):
        _check(_run(resident, requests, Limits(30, 3, 1 << 28), draft=draft), requests, wanted)


def test_rules_of_a_request_are_its_own(resident: Resident) -> None:
    asked: list[dict[str, Any]] = [{}, {"repetition_penalty": 1.6}, {"suppress_tokens": [1, 2, 65]}]
    prompts = [request.input_ids for request in _requests()[:6]]
    requests = [GenerateRequest(p, (), 8, sampling) for p in prompts for sampling in asked]
    _check(_run(resident, requests), requests, [_alone(resident, request) for request in requests])


@MODES
def test_samples_depend_on_seed_and_prompt_only(resident: Resident, fused: bool) -> None:
    sampling = {"do_sample": True, "temperature": 1.3, "top_p": 0.9}
    rng = random.Random(10)
    prompts = [_draw(rng, 2, 20) for _ in range(3)]
    sampled = [GenerateRequest(p, ("e",), 9, sampling, seed) for p in prompts for seed in range(4)]
    alone = [_run(resident, [request], fused=fused).answers[0] for request in sampled]
    others = _requests()[:9]
    mixed: list[GenerateRequest] = [*sampled, *others, sampled[0]]
    rng.shuffle(mixed)
    run = _run(resident, mixed, Limits(9, 3, 1 << 28), fused=fused)
    found = {id(request): answer for request, answer in zip(mixed, run.answers, strict=True)}
    assert [found[id(request)] for request in sampled] == alone
    assert len(set(alone)) > 8


def test_rows_that_wait_for_a_slot_hold_no_keys(resident: Resident, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[int] = []
    held: list[int] = []
    read = PackRunner.read

    def counted(self: PackRunner, places: Any) -> Any:
        copies.append(1)
        return read(self, places)

    monkeypatch.setattr(PackRunner, "read", counted)
    hook = resident.model.register_forward_pre_hook(
        lambda module, args, named: held.append(len(copies)), with_kwargs=True
    )
    try:
        requests = [GenerateRequest((5, 6, n), (), 3) for n in range(30)]
        _run(resident, requests, Limits(256, 2, 1 << 28))
    finally:
        hook.remove()
    assert held[1] <= 2  # before the first step: two slots, two copies


def test_an_empty_stop_text_stops_at_once_as_in_lm_eval(resident: Resident) -> None:
    request = GenerateRequest((1, 2, 3), ("",), 5)
    assert _run(resident, [request]).answers[0].token_ids == _alone(resident, request)
