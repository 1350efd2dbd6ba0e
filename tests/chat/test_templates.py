"""Names are resolved by us, texts travel with the tokenizer, and identity is the text's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_eval.chat import load_template, named_text, resolve_template, set_template, training_tokenizer
from lora_eval.chat.templates import known_template
from lora_eval.errors import PluginError, RecordError, TemplateError
from lora_eval.records import ChatTemplate

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
MARKED = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"


def test_both_texts_travel_with_save_pretrained(tokenizer: Callable[[str], Any], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    own, template = tokenizer("qwen2.5"), load_template("qwen2.5")
    set_template(own, template)
    own.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)

    assert loaded.chat_template == {"default": template.default, "training": template.training}
    assert named_text(loaded, "training") == template.training
    assert (tmp_path / "chat_template.jinja").read_bytes() == template.default.encode()
    # A library that knows nothing of names serves the vendor's text.
    plain = tokenizer("qwen2.5")
    plain.chat_template = template.default
    expected = plain.apply_chat_template(CHAT, tokenize=False)
    assert loaded.apply_chat_template(CHAT, tokenize=False) == expected


def test_an_unknown_name_raises_where_transformers_makes_it_the_prompt(
    tokenizer: Callable[[str], Any],
) -> None:
    own = tokenizer("qwen2.5")
    set_template(own, load_template("qwen2.5"))
    assert own.apply_chat_template(CHAT, chat_template="trainng", tokenize=False) == "trainng"
    with pytest.raises(TemplateError, match=r"no chat template named 'trainng'; did you mean 'training'\?"):
        named_text(own, "trainng")


def test_a_tokenizer_without_a_template_says_how_to_choose_one(tokenizer: Callable[[str], Any]) -> None:
    for call in (lambda t: named_text(t, "default"), resolve_template, training_tokenizer):
        with pytest.raises(
            TemplateError, match="has no chat template; choose one with `lora-eval template list`"
        ):
            call(tokenizer("llama3"))


@pytest.mark.parametrize("name", ["qwen2.5", "llama3"])
def test_a_vendors_text_is_known_by_its_bytes(tokenizer: Callable[[str], Any], name: str) -> None:
    own, template = tokenizer(name), load_template(name)
    own.chat_template = template.default
    assert named_text(own, "training") == template.training
    assert resolve_template(own) == template
    own.chat_template = template.default + " "
    with pytest.raises(TemplateError, match=r"no \{% generation %\} marks"):
        named_text(own, "training")
    with pytest.raises(TemplateError, match=r"no \{% generation %\} marks"):
        resolve_template(own)


def test_a_text_that_has_marks_is_its_own_training_text(tokenizer: Callable[[str], Any]) -> None:
    own = tokenizer("qwen2.5")
    own.chat_template = MARKED
    assert named_text(own, "training") == MARKED
    assert resolve_template(own).training == MARKED
    assert resolve_template(own).name == "own"


def test_the_tokenizers_own_training_text_goes_before_ours(tokenizer: Callable[[str], Any]) -> None:
    own, template = tokenizer("qwen2.5"), load_template("qwen2.5")
    own.chat_template = {"default": template.default, "training": MARKED}
    found = resolve_template(own)
    assert (found.name, found.training, found.stop_tokens) == ("own", MARKED, ("<|im_end|>",))


def test_a_named_template_replaces_the_tokenizers_own(tokenizer: Callable[[str], Any]) -> None:
    own = tokenizer("qwen2.5")
    own.chat_template = MARKED
    assert resolve_template(own, "qwen2.5") == load_template("qwen2.5")


def test_other_names_stay_only_with_the_text_that_they_belong_to(tokenizer: Callable[[str], Any]) -> None:
    own, template = tokenizer("qwen2.5"), load_template("qwen2.5")
    own.chat_template = {"default": template.default, "tool_use": "T", "training": "old"}
    set_template(own, template)
    assert own.chat_template == {
        "default": template.default,
        "tool_use": "T",
        "training": template.training,
    }
    set_template(own, ChatTemplate(name="x", default=PLAIN))
    assert own.chat_template == {"default": PLAIN}


def test_the_training_copy_leaves_the_original_as_it_was(tokenizer: Callable[[str], Any]) -> None:
    own, template = tokenizer("qwen2.5"), load_template("qwen2.5")
    set_template(own, template)
    twin = training_tokenizer(own)
    assert twin.chat_template == template.training
    assert own.chat_template["default"] == template.default
    assert twin.get_vocab() == own.get_vocab()


def test_a_path_is_read_with_what_stands_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_bytes(PLAIN.encode() + b"\r\n")
    (tmp_path / "mine_training.jinja").write_text(MARKED)
    (tmp_path / "mine.yaml").write_text("stop_tokens: ['<end>']\nsummary: Mine.\n")
    assert load_template(str(tmp_path / "mine.jinja")) == ChatTemplate(
        name="mine", default=PLAIN + "\r\n", training=MARKED, stop_tokens=("<end>",), summary="Mine."
    )


def test_a_path_with_a_vendors_text_gets_our_training_text(tmp_path: Path) -> None:
    path = tmp_path / "copy.jinja"
    path.write_bytes(load_template("llama3").default.encode())
    found = load_template(str(path))
    assert (found.name, found.training) == ("copy", load_template("llama3").training)


def test_faults_of_files_and_names(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"No template named 'lama3'\. Did you mean 'llama3'\?"):
        load_template("lama3")
    with pytest.raises(TemplateError, match=r"none\.jinja: no such file"):
        load_template(str(tmp_path / "none.jinja"))
    (tmp_path / "bad.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(TemplateError, match=r"is not UTF-8 text \(byte 4\)"):
        load_template(str(tmp_path / "bad.jinja"))
    (tmp_path / "key.jinja").write_text(PLAIN)
    (tmp_path / "key.yaml").write_text("stop_token: ['<end>']\n")
    with pytest.raises(
        RecordError, match=r"key\.yaml: unknown key 'stop_token'; did you mean 'stop_tokens'\?"
    ):
        load_template(str(tmp_path / "key.jinja"))
    with pytest.raises(TemplateError, match="cannot be read"):
        (tmp_path / "folder.jinja").mkdir()
        load_template(str(tmp_path / "folder.jinja"))


def test_a_text_nobody_knows_is_nobodys() -> None:
    assert known_template(PLAIN) is None
