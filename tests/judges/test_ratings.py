"""What a judge's text says, by FastChat's rule and by the strict one."""

from __future__ import annotations

import ast
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.judges.ratings import parse_five, parse_pair, parse_rating

# Texts made of the pieces that matter, and of anything.
PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            ["[[", "]]", "[", "]", "10", "5", "7.5", "11", "0", "A", "B", "C", "A>>B", "A=B", "5/10", "\n"]
        ),
        st.text(max_size=4),
    ),
    max_size=25,
).map("".join)


@pytest.mark.parametrize(
    ("text", "fastchat", "strict"),
    [
        ("Rating: [[7]]", 7, 7),
        ("[[7.5]]", 7.5, 7.5),
        ("[[3]] no, [[8]]", 3, 8),
        ("[[11]]", 11, None),
        ("[[0]]", 0, None),
        ("as in [1], good", 1, None),
        ("[[5/10]]", None, None),
        ("[[ 7 ]]", None, None),
        ("Rating: 7", None, None),
        ("", None, None),
    ],
)
def test_ratings(text, fastchat, strict):
    assert parse_rating(text) == fastchat
    assert parse_rating(text, "strict") == strict


@pytest.mark.parametrize(
    ("text", "fastchat", "strict"),
    [
        ("[[A]]", 0, 0),
        ("[[B]]", 1, 1),
        ("[[C]]", 0.5, 0.5),
        ('not "[[A]]" but [[B]]', 0, 1),
        ("[[C]] ... [[B]]", 1, 1),
        ("[[D]]", None, None),
        ("A", None, None),
    ],
)
def test_pairs(text, fastchat, strict):
    assert parse_pair(text) == fastchat
    assert parse_pair(text, "strict") == strict


@pytest.mark.parametrize(
    ("text", "score"),
    [("[[A>>B]]", 0), ("[[A>B]]", 0.25), ("[[A=B]]", 0.5), ("[[B>A]]", 0.75), ("[[B>>A]]", 1),
     ("first [[A>>B]], on balance [[B>A]]", 0.75), ("[[A]]", None), ("A>>B", None)],
)  # fmt: skip
def test_five_levels(text, score):
    assert parse_five(text) == score


@given(PIECES)
def test_fastchat_mode_is_fastchats_code(text):
    """fastchat/llm_judge/common.py at 0e6d3e4, restated; its \\d takes digits that its literal_eval
    refuses.
    """
    match = re.search(r"\[\[([0-9]+\.?[0-9]*)\]\]", text) or re.search(r"\[([0-9]+\.?[0-9]*)\]", text)
    expected: float | None = None
    if match:
        try:
            expected = float(ast.literal_eval(match.groups()[0]))
        except SyntaxError:  # 007: FastChat would end with an error
            expected = float(match.groups()[0])
    assert parse_rating(text) == expected
    letters = [score for mark, score in (("[[A]]", 0.0), ("[[B]]", 1.0), ("[[C]]", 0.5)) if mark in text]
    assert parse_pair(text) == (letters[0] if letters else None)


@given(PIECES)
def test_strict_verdicts_are_in_range_and_the_last(text):
    rating = parse_rating(text, "strict")
    assert rating is None or 1 <= rating <= 10
    assert parse_rating(f"{text} [[4]]", "strict") == 4
    assert parse_pair(f"{text} [[B]]", "strict") == 1
    assert parse_five(f"{text} [[A>B]]") == 0.25
