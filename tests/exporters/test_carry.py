"""What goes along with the weights: templates where the server looks, settings, licences."""

from __future__ import annotations

import json
import shutil

import pytest

from lora_eval.errors import InputError, ModelError
from lora_eval.export import export
from lora_eval.exporters.calibration import RECIPE
from lora_eval.exporters.carry import carry_config, licence_of, pack_templates, suit_server
from tests.conftest import CHATML, save_tiny_tokenizer


def inside(folder):
    return json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template")


@pytest.mark.parametrize(
    ("server", "in_file", "in_config"),
    [(None, True, True), ("tgi", False, True), ("vllm", True, False), ("sglang", True, False)],
)
@pytest.mark.parametrize("before", ["file", "config"])
def test_the_template_lies_where_the_server_looks(tmp_path, server, in_file, in_config, before):
    from transformers import AutoTokenizer

    save_tiny_tokenizer(tmp_path)
    if before == "config":
        AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path, save_jinja_files=False)
        (tmp_path / "chat_template.jinja").unlink()
        assert inside(tmp_path) == CHATML
    pack_templates(tmp_path, server)
    assert (tmp_path / "chat_template.jinja").is_file() == in_file
    assert inside(tmp_path) == (CHATML if in_config else None)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == CHATML


@pytest.mark.parametrize("server", [None, "tgi", "vllm", "sglang", "transformers"])
def test_only_tgi_gets_the_words_of_transformers_4(tmp_path, server):
    files = {
        "tokenizer_config.json": {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<a>"]},
        "config.json": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    }
    for name, config in files.items():
        (tmp_path / name).write_text(json.dumps(config))
    suit_server(tmp_path, server)
    after = {name: json.loads((tmp_path / name).read_text()) for name in files}
    if server != "tgi":
        assert after == files
    else:
        assert after["tokenizer_config.json"]["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert after["config.json"] == files["config.json"] | {"rope_theta": 5e5}


@pytest.mark.parametrize("server", [None, "tgi", "transformers"])
def test_several_templates(tmp_path, server):
    from transformers import AutoTokenizer

    save_tiny_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    templates = {"default": CHATML, "tool_use": CHATML + "{# tools #}"}
    tokenizer.chat_template = templates
    tokenizer.save_pretrained(tmp_path)
    pack_templates(tmp_path, server)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == templates
    assert (tmp_path / "additional_chat_templates").is_dir() == (server != "tgi")
    if server != "transformers":
        assert {entry["name"] for entry in inside(tmp_path)} == set(templates)


@pytest.mark.parametrize("server", [None, "tgi", "vllm"])
def test_files_of_templates_count_before_those_in_the_configuration(tmp_path, server):
    """As in transformers; a stale one must not come back."""
    from transformers import AutoTokenizer

    save_tiny_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = {"default": CHATML, "tool_use": CHATML + "{# tools #}"}
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    stale = [{"name": name, "template": "{# stale #}"} for name in ("default", "tool_use")]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": stale}))
    pack_templates(tmp_path, server)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == tokenizer.chat_template
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "{# stale #}"}))
    if server != "tgi":
        pack_templates(tmp_path, server)
        assert AutoTokenizer.from_pretrained(tmp_path).chat_template == tokenizer.chat_template


def test_a_tokenizer_without_a_template_stays_without(tmp_path):
    save_tiny_tokenizer(tmp_path, chat_template=None)
    before = (tmp_path / "tokenizer_config.json").read_text()
    pack_templates(tmp_path, None)
    assert (tmp_path / "tokenizer_config.json").read_text() == before
    assert not (tmp_path / "chat_template.jinja").exists()


def test_a_change_of_the_config_reaches_the_part_that_has_the_key(tmp_path):
    config = {
        "text_config": {"vocab_size": 320, "eos_token_id": 3},
        "vision_config": {"depth": 1},
        "torch_dtype": "float32",
        "quantization_config": {"quant_method": "gptq"},
        "eos_token_id": 3,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "out").mkdir()
    changes = {"vocab_size": 330, "tie_word_embeddings": False, "eos_token_id": 4}
    carry_config(tmp_path, tmp_path / "out", "bfloat16", changes)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {
        "text_config": {"vocab_size": 330, "eos_token_id": 4},
        "vision_config": {"depth": 1},
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        "eos_token_id": 4,
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("---\nlicense: apache-2.0\ntags: [a]\n---\nA model.", "apache-2.0"),
        ("---\ntags: [a]\n---\nlicense: mit", None),
        ("license: mit", None),
        ("---\nlicense: mit", None),
        ("---\nlicense: 'llama3.1'\n---\n", "llama3.1"),
        ("", None),
    ],
)
def test_the_licence_of_a_model_card(tmp_path, text, found):
    assert licence_of(tmp_path) is None
    (tmp_path / "README.md").write_text(text)
    assert licence_of(tmp_path) == found


def test_licences_of_base_and_adapter_travel(qlora, tmp_path):
    shutil.copytree(qlora / "base", tmp_path / "base")
    shutil.copytree(qlora / "adapter", tmp_path / "adapter", ignore=shutil.ignore_patterns("lineage.json"))
    (tmp_path / "base" / "LICENSE").write_text("the base's")
    (tmp_path / "base" / "NOTICE").write_text("a notice")
    (tmp_path / "base" / "modeling_ours.py").write_text("# the model's own code")
    (tmp_path / "adapter" / "train.py").write_text("# not the model's")
    (tmp_path / "adapter" / RECIPE).write_text("name: its recipe")
    (tmp_path / "base" / "README.md").write_text("---\nlicense: llama3\n---\n")
    (tmp_path / "adapter" / "LICENSE").write_text("the adapter's")
    lineage = export("merge", base=tmp_path / "base", adapter=tmp_path / "adapter", out=tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE").read_text() == "the base's"
    assert (tmp_path / "out" / "ADAPTER_LICENSE").read_text() == "the adapter's"
    assert (tmp_path / "out" / "NOTICE").read_text() == "a notice"
    assert [path.name for path in (tmp_path / "out").glob("*.py")] == ["modeling_ours.py"]
    assert (tmp_path / "out" / RECIPE).read_text() == "name: its recipe"
    assert lineage.steps[-1].arguments["licence"] == "llama3"


def test_an_end_token_at_which_generation_does_not_end_is_said(qlora, tmp_path):
    from transformers import GenerationConfig

    shutil.copytree(qlora / "adapter", tmp_path / "adapter", ignore=shutil.ignore_patterns("lineage.json"))
    GenerationConfig(eos_token_id=10).save_pretrained(tmp_path / "adapter")
    lineage = export("merge", base=qlora / "base", adapter=tmp_path / "adapter", out=tmp_path / "out")
    assert any("generation ends at 10, and not at" in note for note in lineage.steps[-1].arguments["notes"])


def test_a_server_that_is_none(qlora, tmp_path):
    with pytest.raises(InputError, match="expected one of transformers, vllm, sglang, tgi"):
        export("merge", base=qlora / "base", adapter=qlora / "adapter", out=tmp_path / "out",
               options={"server": "triton"})  # fmt: skip


def test_without_generation_settings_the_end_token_of_the_config_counts(qlora, tmp_path):
    base = shutil.copytree(qlora / "base", tmp_path / "base")
    (base / "generation_config.json").unlink()
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"eos_token_id": 10}))
    shutil.copytree(qlora / "adapter", tmp_path / "adapter", ignore=shutil.ignore_patterns("lineage.json"))
    lineage = export("merge", base=base, adapter=tmp_path / "adapter", out=tmp_path / "out",
                     options={"onto": "original"})  # fmt: skip
    (note,) = lineage.steps[-1].arguments["notes"]
    assert note.startswith("generation ends at 10, and not at the tokenizer's own end token 257")
    assert note.endswith("check config.json")


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
def test_a_faulty_file_is_named_where_it_lies(qlora, tmp_path, name):
    base = shutil.copytree(qlora / "base", tmp_path / "base")
    (base / name).write_text("{")
    shutil.copytree(qlora / "adapter", tmp_path / "adapter", ignore=shutil.ignore_patterns("lineage.json"))
    with pytest.raises(ModelError, match=rf"{base / name}: is not valid JSON"):
        export("merge", base=base, adapter=tmp_path / "adapter", out=tmp_path / "out")
