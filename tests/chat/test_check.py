"""The check finds each way in which a training text can be unsafe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lora_eval.chat.check import PROBES, check_template
from lora_eval.errors import TemplateError
from lora_eval.records import ChatTemplate

HEAD = "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}{%- if m.role == 'assistant' %}"
TAIL = "{%- else %}{{- m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
MARKED = "{%- generation %}{{- m.content + '<|im_end|>' }}{%- endgeneration %}{{- '\n' }}"
PLAIN = HEAD + "{{- m.content + '<|im_end|>\n' }}" + TAIL


def _template(
    marked: str = MARKED, *, default: str = PLAIN, head: str = HEAD, stop: bool = True
) -> ChatTemplate:
    tokens = ("<|im_end|>",) if stop else ()
    return ChatTemplate(name="t", default=default, training=head + marked + TAIL, stop_tokens=tokens)


def test_a_safe_one_passes_by_text_and_by_token(tokenizer: Callable[[str], Any]) -> None:
    assert check_template(_template()).passed
    assert check_template(_template(), tokenizer("qwen2.5")).passed
    assert check_template(_template(stop=False), tokenizer("qwen2.5")).passed


@pytest.mark.parametrize(
    ("marked", "problem"),
    [
        ("{%- generation %}{{- m.content }}{%- endgeneration %}{{- '<|im_end|>\n' }}", "not in '<|im_end|>'"),
        ("{%- generation %}{{- m.content + '<|im_end|>\n' }}{%- endgeneration %}", "not in '<|im_end|>'"),
        (
            "{{- m.content }}{%- generation %}{{- '<|im_end|>' }}{%- endgeneration %}{{- '\n' }}",
            "the assistant wrote '4'",
        ),
        (
            "{%- generation %}{{- m.content + '<|im_end|>' }}{%- endgeneration %}",
            "the texts differ from character",
        ),
        ("{{- m.content + '<|im_end|>\n' }}", "1 assistant turns, and 0 marked parts"),
    ],
)
def test_what_is_wrong_is_said(marked: str, problem: str) -> None:
    result = check_template(_template(marked))
    assert not result.passed
    assert result.problems[0].startswith("conversation 0 (user, assistant): ")
    assert problem in result.problems[0]


def test_an_untrained_end_of_turn_is_found_by_token_too(tokenizer: Callable[[str], Any]) -> None:
    marked = "{%- generation %}{{- m.content }}{%- endgeneration %}{{- '<|im_end|>\n' }}"
    unnamed = _template(marked, stop=False)
    assert check_template(unnamed).passed  # without stop tokens the text alone cannot tell
    result = check_template(unnamed, tokenizer("qwen2.5"))
    assert "the trained tokens '4' do not end in a stop token" in result.problems[0]


def test_both_texts_may_refuse_a_conversation_but_not_one_alone() -> None:
    refuse = "{%- if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    both = check_template(_template(default=refuse + PLAIN, head=refuse + HEAD))
    assert (both.passed, both.refused) == (True, 2)
    one = check_template(_template(default=refuse + PLAIN))
    assert "the default text refuses it and the other does not" in one.problems[0]


def test_nothing_rendered_is_no_pass() -> None:
    refuse = "{{ raise_exception('never') }}"
    result = check_template(_template(default=refuse, head=refuse + HEAD))
    assert result.refused == len(PROBES)
    assert not result.passed


def test_no_training_text_says_what_to_write() -> None:
    with pytest.raises(TemplateError, match=r"write NAME_training\.jinja beside NAME\.jinja"):
        check_template(ChatTemplate(name="t", default=PLAIN))
