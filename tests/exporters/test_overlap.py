"""Benchmark items among calibration rows: found whole and wrapped; likeness is no overlap."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.errors import DataError
from lora_eval.exporters.overlap import check_held_out, words

ITEM = (
    "A train leaves the old station at nine and reaches the harbour forty minutes later, after two stops; "
    "how long does it stand at each of them if it drives for half an hour?"
)
WORDS = st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta", "eta"]), max_size=30)


def found(row: str | list[str], item: str) -> bool:
    rows = [["something else entirely"], [row] if isinstance(row, str) else row]
    try:
        check_held_out(rows, {"task": ["not this one, it is another", item]})
    except DataError as error:
        assert "hold 1 benchmark items" in str(error)
        assert "item task 1 in" in str(error)
        return True
    return False


def test_an_item_is_found_inside_a_message_and_wrapped():
    assert found(ITEM, ITEM)
    assert found(f"Please help me. {ITEM.upper()} Thanks!", ITEM)
    assert found(["You are kind.", ITEM, "Five minutes."], f"Question: {ITEM}\nAnswer:")


def test_a_part_of_an_item_or_another_number_is_not_the_item():
    own = ITEM.split()
    assert not found(" ".join(own[:-1]), ITEM)
    assert not found(" ".join(own[::-1]), ITEM)
    assert not found(ITEM.replace("forty", "fifty"), ITEM)
    assert not found(ITEM.replace("half an hour", "half an age"), ITEM)


def test_one_message_must_hold_it_all():
    own = ITEM.split()
    check_held_out([[" ".join(own[:15]), " ".join(own[15:])]], {"task": [ITEM]})


def test_a_short_item_is_found_where_it_is_a_whole_message():
    assert found(
        ["What is the capital of France?", "Paris."], "Question: what is the capital of france\nAnswer:"
    )
    assert not found("a question", "Question: Answer:")
    assert not found(
        "Yesterday he asked: what is the capital of France? Nobody knew.", "What is the capital?"
    )
    assert not found("anything", "?!")


@given(WORDS, WORDS, WORDS)
def test_a_text_is_always_found_in_a_row_that_holds_it(before, item, after):
    long = [f"w{n}" for n in range(11)] + item  # long enough for a run
    assert found(" ".join([*before, *long, *after]), " ".join(long))


@given(st.integers(0, 2**32))
def test_texts_of_other_words_are_never_found(seed):
    rng = random.Random(seed)
    row = " ".join(rng.choices(["one", "two", "three"], k=40))
    assert not found(row, " ".join(rng.choices(["four", "five", "six"], k=rng.randint(1, 30))))


def test_many_are_counted_and_few_are_shown():
    with pytest.raises(DataError, match=r"hold 7 benchmark items.*item task 4 in .*; and 2 more; give other"):
        check_held_out([[ITEM]], {"task": [ITEM] * 7})


def test_words_have_no_case_and_no_punctuation():
    assert words("Straße, 2-fach!") == ["strasse", "2", "fach"]
