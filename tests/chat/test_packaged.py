"""The packaged templates: the vendor's bytes, and texts that train exactly what the assistant wrote."""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_eval.chat import load_template, set_template, training_tokenizer
from lora_eval.chat.check import check_template
from lora_eval.chat.mask import mask_with_text
from lora_eval.registry import list_plugins

PACKAGED = [plugin.name for plugin in list_plugins("template") if plugin.path is not None]
# The vendors' texts, and where TRL keeps its copy of them.
VENDORS = {
    "llama3": ("llama3", "ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122"),
    "qwen2.5": ("qwen2_5", "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f"),
}
END = {"llama3": "<|eot_id|>", "qwen2.5": "<|im_end|>"}
CASES = json.loads((Path(__file__).parent / "cases.json").read_text("utf-8"))

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30) | st.sampled_from(
    [
        "",
        " ",
        "\n",
        "\n\nx",
        "x\n\n",
        "{{ x }}",
        "{% y %}",
        "\u2028",
        "e\u0301",
        "🙂",
        "user\n",
        "<|im_end",
        "<|eot",
    ]
)
TURN = st.tuples(TEXT, TEXT)
CONVERSATIONS = st.builds(
    lambda system, turns, last: [
        *([{"role": "system", "content": system}] if system is not None else []),
        *(
            {"role": role, "content": text}
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ),
        *([{"role": "user", "content": last}] if last is not None else []),
    ],
    st.none() | TEXT,
    st.lists(TURN, min_size=1, max_size=4),
    st.none() | TEXT,
)


def _render(text: str, messages: list[dict[str, Any]], **arguments: Any) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template(conversations=[messages], chat_template=text, **arguments)
    return str(rendered[0])


@pytest.mark.parametrize("name", VENDORS)
def test_the_default_text_is_the_vendors_byte_for_byte(name: str) -> None:
    file, sha256 = VENDORS[name]
    template = load_template(name)
    (folder,) = find_spec("trl").submodule_search_locations
    assert template.default.encode() == (Path(folder) / "chat_templates" / f"{file}.jinja").read_bytes()
    assert hashlib.sha256(template.default.encode()).hexdigest() == sha256 == template.upstream_sha256
    assert template.summary
    assert template.licence
    assert template.families


@pytest.mark.parametrize("name", PACKAGED)
def test_every_packaged_template_is_safe_to_train_with(name: str) -> None:
    result = check_template(load_template(name))
    assert result.problems == ()
    assert result.passed


@pytest.mark.parametrize("name", VENDORS)
@settings(max_examples=150, deadline=None)
@given(messages=CONVERSATIONS, prompt=st.booleans())
def test_default_and_training_text_render_the_same_bytes(
    name: str, messages: list[dict[str, str]], prompt: bool
) -> None:
    template = load_template(name)
    arguments = {"bos_token": "<|begin_of_text|>", "add_generation_prompt": prompt}
    assert _render(template.default, messages, **arguments) == _render(
        template.training or "", messages, **arguments
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["template"])
def test_both_texts_render_what_other_projects_expect(case: dict[str, Any]) -> None:
    template = load_template(case["template"])
    for text in (template.default, template.training or ""):
        assert _render(text, case["messages"], **case["arguments"]) == case["expected"]


def test_tool_calls_render_the_same_bytes_and_train_the_call() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    template = load_template("qwen2.5")
    for content in ("", "Let me see."):
        messages = [
            {"role": "user", "content": "1 + 1?"},
            {"role": "assistant", "content": content, "tool_calls": [call, call["function"]]},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "2"},
        ]
        expected = _render(template.default, messages)
        rendered, spans = render_jinja_template(
            conversations=[messages], chat_template=template.training, return_assistant_tokens_mask=True
        )
        assert rendered[0] == expected
        lines = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
        first = f"{content}\n{lines}" if content else lines
        trained = [rendered[0][start:end] for start, end in spans[0]]
        assert trained == [f"{first}\n{lines}<|im_end|>", "2<|im_end|>"]


@pytest.mark.parametrize("name", VENDORS)
@settings(max_examples=60, deadline=None)
@given(messages=CONVERSATIONS)
def test_exactly_the_answers_with_their_end_of_turn_train(
    tokenizers: dict[str, Any], name: str, messages: list[dict[str, str]]
) -> None:
    template = load_template(name)
    tokenizer = tokenizers[name]
    ids, mask = mask_with_text(tokenizer, messages, template.training or "")

    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    # Jinja's trim and str.strip take the same characters away.
    shown = [text.strip() if name == "llama3" else text for text in answers]
    trained = tokenizer.decode([token for token, one in zip(ids, mask, strict=True) if one])
    # A token that straddles the header's end ("\n" and a first "\n" of the answer) trains whole.
    wanted = "".join(f"{text}{END[name]}" for text in shown)
    assert trained.replace("\n", "") == wanted.replace("\n", "")
    plain = tokenizer.apply_chat_template(
        messages, chat_template=template.default, tokenize=True, return_dict=True
    )
    assert ids == list(plain["input_ids"])
    end = tokenizer.convert_tokens_to_ids(END[name])
    assert sum(mask[i] for i, token in enumerate(ids) if token == end) == len(answers)


@pytest.mark.parametrize("name", VENDORS)
def test_trl_finds_them_fit_for_training(tokenizer: Any, name: str) -> None:
    from trl.chat_template_utils import (
        has_generation_markers,
        is_chat_template_prefix_preserving,
        is_chat_template_stop_token_trained,
    )

    own = tokenizer(name)
    set_template(own, load_template(name))
    twin = training_tokenizer(own)
    assert has_generation_markers(twin.chat_template)
    assert is_chat_template_stop_token_trained(twin)
    if name == "qwen2.5":  # TRL's probe uses tools, which Llama 3 does not have
        assert is_chat_template_prefix_preserving(twin)
