"""Distances between answers, streams, and what a served name is: no server needed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.cli.smoke import served_name
from lora_eval.engines.http_requests import Answer, Unread
from lora_eval.engines.vllm_probe import Expected, Step, Tolerance
from lora_eval.errors import InputError
from lora_eval.smoke.answers import distance, read_stream, within

TOLERANCE = Tolerance(0.01, 0.1)


class Letters:
    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def _expected(*steps: tuple[int, float, float]) -> Expected:
    return Expected((), (tuple(Step(*step) for step in steps),))


def _answer(*tokens: tuple[int, float]) -> Answer:
    return Answer("", tuple(t for t, _ in tokens), "length", tuple(v for _, v in tokens))


def test_a_token_that_led_clearly_parts_and_what_follows_is_not_compared() -> None:
    told = [_answer((65, -1.0), (66, -9.0), (67, -9.0))]
    found = distance(
        told, _expected((65, -1.02, 3.0), (70, -0.1, 2.0), (67, -1.0, 3.0)), TOLERANCE, Letters()
    )
    assert found.differences == (pytest.approx(0.02),)
    assert found.away == pytest.approx((0.02 + 2.0) / 2)
    assert len(found.parted) == 1
    assert "token 1 of answer 0 is 66, here it is 70, leading by 2 nats" in found.parted[0]


def test_level_tokens_may_part() -> None:
    found = distance([_answer((66, -1.0))], _expected((65, -1.0, 0.19)), TOLERANCE, Letters())
    assert found.parted == () and found.equal == 0


def test_a_missing_token_parts() -> None:
    found = distance([_answer((65, -1.0))], _expected((65, -1.0, 3.0), (66, -1.0, 3.0)), TOLERANCE, Letters())
    assert "token 1 of answer 0 is missing" in found.parted[0]


def test_without_ids_the_text_is_compared() -> None:
    found = distance(
        [Answer("AB", None, "length")], _expected((65, -1, 3), (66, -1, 3)), TOLERANCE, Letters()
    )
    assert found.equal == 1 and found.differences == ()


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(-20, 0), st.floats(0, 5)), min_size=1, max_size=8))
def test_an_answer_is_at_no_distance_from_itself(steps: list[tuple[int, float, float]]) -> None:
    found = distance([_answer(*((t, v) for t, v, _ in steps))], _expected(*steps), TOLERANCE, Letters())
    assert found.away == 0 and found.equal == 1 and not found.parted


def test_a_figure_that_is_no_number_is_not_within_rounding() -> None:
    assert within([0.001, 0.002], TOLERANCE)[0]
    assert not within([0.0, float("nan")], TOLERANCE)[0]
    assert not within([0.0] * 50 + [0.2], TOLERANCE)[0]
    assert not within([0.05, 0.05], TOLERANCE)[0]


def test_a_stream_is_put_together() -> None:
    chunks = [
        {"choices": [{"text": "A", "token_ids": [65], "logprobs": {"token_logprobs": [-1.0]}}]},
        {"choices": [{"text": "B", "token_ids": [66], "finish_reason": "length"}]},
        {"choices": [], "usage": {}},
    ]
    text = "\n\n".join(f"data: {json.dumps(chunk)}" for chunk in chunks) + "\n\ndata: [DONE]\n\n"
    found = read_stream(text)
    assert (found.text, found.token_ids, found.finish_reason) == ("AB", (65, 66), "length")
    for nothing in ("", "data: [DONE]", "data: {oops"):
        with pytest.raises(Unread):
            read_stream(nothing)


def test_a_served_name_may_hold_slashes_and_colons() -> None:
    assert served_name("org/base:tuned=./a=b", "--adapter") == ("org/base:tuned", "./a=b")
    assert served_name("./base", "--base", required=False) == (None, "./base")
    with pytest.raises(InputError, match="expected NAME=PATH"):
        served_name("./adapter", "--adapter")
