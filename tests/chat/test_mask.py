"""Which tokens train, and what is counted before training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lora_eval.chat import assistant_mask, load_template, mask_report, set_template
from lora_eval.errors import TemplateError

# <|im_start|> user \n q <|im_end|> \n | <|im_start|> assistant \n a b <|im_end|> \n
ONE = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "ab"}]
TEXT = (
    "{%- for m in messages %}{{- m.role[0] + ':' }}"
    "{%- if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{%- elif m.role == 'system' %}{{ raise_exception('no system message, please') }}"
    "{%- else %}{{- m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
)


@pytest.fixture
def own(tokenizer: Callable[[str], Any]) -> Any:
    """Renders ONE as u : q <end> a : a b <end>, of which the last three train."""
    made = tokenizer("qwen2.5")
    made.chat_template = TEXT
    return made


def test_the_mask_by_hand(own: Any) -> None:
    ids, mask = assistant_mask(own, ONE)
    assert [own.decode([token]) for token in ids] == [
        "u",
        ":",
        "q",
        "<|im_end|>",
        "a",
        ":",
        "a",
        "b",
        "<|im_end|>",
    ]
    assert mask == [0, 0, 0, 0, 0, 0, 1, 1, 1]


def test_an_empty_answer_trains_its_end_of_turn_only(own: Any) -> None:
    _, mask = assistant_mask(own, [ONE[0], {"role": "assistant", "content": ""}])
    assert mask == [0, 0, 0, 0, 0, 0, 1]


def test_the_report_by_hand(own: Any) -> None:
    report = mask_report(own, [ONE, [*ONE, ONE[0]], [*ONE, *ONE]], max_length=None)
    assert (report.rows, report.tokens, report.trained_tokens) == (3, 9 + 13 + 18, 3 + 3 + 6)
    assert (report.cut, report.without_end, report.untrained) == ((), (), ())
    assert report.summary == "3 rows, 40 tokens, 12 trained (30%)"


@pytest.mark.parametrize(
    ("max_length", "trained", "cut", "without_end", "untrained"),
    [
        (18, 12, (), (), ()),
        (13, 9, (2,), (2,), ()),  # the second answer of row 2 is lost
        (9, 9, (1, 2), (2,), ()),  # row 1 loses only its last question
        (8, 6, (0, 1, 2), (0, 1, 2), ()),  # every end of turn is cut off
        (6, 0, (0, 1, 2), (0, 1, 2), (0, 1, 2)),
    ],
)
def test_what_max_length_takes_is_counted(
    own: Any,
    max_length: int,
    trained: int,
    cut: tuple[int, ...],
    without_end: tuple[int, ...],
    untrained: tuple[int, ...],
) -> None:
    report = mask_report(own, [ONE, [*ONE, ONE[0]], [*ONE, *ONE]], max_length=max_length)
    assert report.trained_tokens == trained
    assert (report.cut, report.without_end, report.untrained) == (cut, without_end, untrained)
    assert (f"{len(cut)} rows cut at max_length {max_length}" in report.summary) == bool(cut)
    assert (f"{len(untrained)} rows without a trained token" in report.summary) == bool(untrained)


def test_a_row_without_an_assistant_turn_is_untrained(own: Any) -> None:
    assert mask_report(own, [ONE, ONE[:1]]).untrained == (1,)


def test_a_refused_conversation_is_said_with_its_roles(own: Any) -> None:
    with pytest.raises(TemplateError, match="of roles system, user: no system message, please"):
        assistant_mask(own, [{"role": "system", "content": "s"}, ONE[0]])


def test_a_tokenizer_that_maps_no_characters_is_refused() -> None:
    from transformers import ByT5Tokenizer

    slow = ByT5Tokenizer()
    set_template(slow, load_template("qwen2.5"))
    with pytest.raises(TemplateError, match="needs a fast tokenizer"):
        assistant_mask(slow, ONE)


def test_an_answer_that_merges_with_the_prompt_is_counted(tokenizer: Callable[[str], Any]) -> None:
    own = tokenizer("qwen2.5")
    set_template(own, load_template("qwen2.5"))
    assert len(own.encode("\n\n")) == 1, "the test needs a tokenizer that merges two newlines"
    shifted = [ONE[0], {"role": "assistant", "content": "\n"}]
    report = mask_report(own, [ONE, shifted, [*ONE, *shifted]])
    assert report.merged == (1, 2)
    assert "2 rows whose answer begins with white space and merges with the prompt" in report.summary
    # So it is: the row does not begin with the ids that serving gives for the same prompt.
    prompt = own.apply_chat_template(ONE[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert assistant_mask(own, ONE)[0][: len(prompt)] == prompt
    assert assistant_mask(own, shifted)[0][: len(prompt)] != prompt
