"""One template, one tokenizer and one list of end tokens for all arms, each where the server reads it."""

from __future__ import annotations

import json
import shutil

import pytest

from lora_eval.servers.inputs import Adapter, Model
from lora_eval.servers.texts import choose_texts, read_template
from tests.conftest import CHATML, save_tiny_tokenizer
from tests.servers.conftest import SERVERS, ask, edit_json, of_rule

OTHER = CHATML + "{# another #}"


@pytest.fixture
def with_text(make_adapter, copied):
    """`with_text(text)` is an adapter that brings its own tokenizer with that template."""

    def make(text):
        adapter = copied(make_adapter())
        save_tiny_tokenizer(adapter, chat_template=text)
        return adapter

    return make


@pytest.mark.parametrize("server", SERVERS)
def test_the_bases_own_template_needs_nothing(server, tiny_llama, with_text) -> None:
    found = of_rule(ask(server, tiny_llama, with_text(CHATML)), "chat-template")

    legacy = server in ("tgi", "lorax")  # the base has it in chat_template.jinja, which they never read
    assert [finding.severity for finding in found] == (["info"] if legacy else [])


@pytest.mark.parametrize("server", SERVERS)
def test_an_adapters_template_goes_to_all_arms(server, tiny_llama, with_text) -> None:
    adapter = with_text(OTHER)
    texts = choose_texts(Model("base", tiny_llama), [Adapter("tuned", adapter)])

    assert (texts.template, texts.changed) == (OTHER, True)
    found = of_rule(ask(server, tiny_llama, adapter), "chat-template")
    assert "requests to the base get the adapters' chat template too" in found[0].reason
    assert {finding.severity for finding in found} == {"info"}


@pytest.mark.parametrize("server", SERVERS)
def test_two_templates_do_not_go_into_one_server(server, tiny_llama, with_text, make_adapter) -> None:
    two = {"first": with_text(OTHER), "second": with_text(CHATML), "third": make_adapter()}

    found = [f for f in of_rule(ask(server, tiny_llama, two), "chat-template") if f.severity == "ignored"]

    assert [finding.arm for finding in found] == ["second", "third"]  # the third is asked with the base's


def test_templates_are_found_in_every_packaging(tmp_path) -> None:
    save_tiny_tokenizer(tmp_path)
    assert read_template(tmp_path) == CHATML
    (tmp_path / "chat_template.jinja").unlink()
    assert read_template(tmp_path) is None
    edit_json(tmp_path, "tokenizer_config.json", chat_template="one text")
    assert read_template(tmp_path) == "one text"
    named = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    edit_json(tmp_path, "tokenizer_config.json", chat_template=named)
    assert read_template(tmp_path) == "b"


def test_no_template_at_all(tiny_llama, make_adapter, copied) -> None:
    base = copied(tiny_llama)
    (base / "chat_template.jinja").unlink()

    (finding,) = of_rule(ask("vllm", base, make_adapter()), "chat-template")

    assert finding.severity == "warning"


@pytest.mark.parametrize("server", ["tgi", "lorax"])
def test_marks_of_training_are_not_given_to_another_dialect(server, tiny_llama, with_text) -> None:
    text = CHATML.replace("{%- endfor -%}", "{% generation %}{% endgeneration %}{%- endfor -%}")

    found = of_rule(ask(server, tiny_llama, with_text(text)), "chat-template")

    assert "refused" in {finding.severity for finding in found}
    vllm = of_rule(ask("vllm", tiny_llama, with_text(text)), "chat-template")
    assert {finding.severity for finding in vllm} == {"info"}


@pytest.mark.parametrize("server", SERVERS)
def test_end_tokens_that_only_the_adapter_names(server, tiny_llama, make_adapter, copied) -> None:
    adapter = copied(make_adapter())
    (adapter / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 256]}))

    (finding,) = of_rule(ask(server, tiny_llama, adapter), "stop-tokens")

    assert finding.severity == ("info" if server == "vllm" else "ignored")
    assert "trained to end at 256," in finding.reason
    assert finding.issue == "https://github.com/unslothai/unsloth/issues/5386"


def test_a_base_without_end_tokens(tiny_llama, make_adapter, copied) -> None:
    base = copied(tiny_llama)
    (base / "generation_config.json").unlink()
    edit_json(base, "config.json", eos_token_id=None)

    (finding,) = of_rule(ask("vllm", base, make_adapter()), "stop-tokens")

    assert finding.severity == "warning"


@pytest.mark.parametrize("server", SERVERS)
def test_tokens_that_the_bases_tokenizer_has_not(server, tiny_llama, make_adapter, copied) -> None:
    adapter = copied(make_adapter())
    shutil.copyfile(tiny_llama / "tokenizer.json", adapter / "tokenizer.json")
    data = json.loads((adapter / "tokenizer.json").read_text())
    data["added_tokens"].append(data["added_tokens"][0] | {"id": 259, "content": "<|call|>"})
    (adapter / "tokenizer.json").write_text(json.dumps(data))

    (finding,) = of_rule(ask(server, tiny_llama, adapter), "tokenizer")

    assert (finding.severity, "'<|call|>'" in finding.reason) == ("ignored", True)
