"""Files rewritten for transformers 4 say the same to transformers 5. What release 4.51 itself makes of them
was seen with the shard of TGI 3.3.7 (docs/deploy.md): it is in no environment of the tests.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_eval.models.legacy import is_new_tokenizer, legacy_positions, legacy_tokenizer
from tests.conftest import CHATML, save_tiny_llama, save_tiny_tokenizer


def test_a_tokenizer_of_transformers_5(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_tiny_tokenizer(tmp_path)
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)  # as training does
    path = tmp_path / "tokenizer_config.json"
    new = json.loads(path.read_text("utf-8"))
    assert is_new_tokenizer(new)
    before = AutoTokenizer.from_pretrained(tmp_path)
    old = legacy_tokenizer(new)
    assert not is_new_tokenizer(old)
    assert old["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert old["additional_special_tokens"] == new["extra_special_tokens"] == ["<|im_start|>"]
    assert legacy_tokenizer(old) == old
    path.write_text(json.dumps(old), "utf-8")
    after = AutoTokenizer.from_pretrained(tmp_path)
    assert after.all_special_tokens == before.all_special_tokens
    assert after.special_tokens_map == before.special_tokens_map
    text = "<|im_start|>user\nHé<|im_end|>"
    assert after(text)["input_ids"] == before(text)["input_ids"]
    assert after.chat_template == before.chat_template == CHATML


@pytest.mark.parametrize(
    ("rotation", "scaling"),
    [
        ({"rope_type": "default", "rope_theta": 500_000.0}, None),
        (
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0},
            {"rope_type": "linear", "factor": 2.0},
        ),
    ],
)
def test_positions(tmp_path: Path, rotation: dict[str, Any], scaling: dict[str, Any] | None) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    save_tiny_llama(tmp_path, rope_parameters=rotation)
    ids = torch.arange(3, 90)[None]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits
    path = tmp_path / "config.json"
    config = json.loads(path.read_text("utf-8"))
    assert "rope_theta" not in config
    found = legacy_positions(config)
    assert found["rope_theta"] == rotation["rope_theta"]
    assert found.get("rope_scaling") == scaling
    assert found["rope_parameters"] == config["rope_parameters"]
    path.write_text(json.dumps(found), "utf-8")
    with torch.no_grad():
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, expected)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"rope_theta": 5.0, "rope_scaling": None},
        {
            "rope_parameters": {
                "full_attention": {"rope_theta": 1e6},
                "sliding_attention": {"rope_theta": 1e4},
            }
        },
        {"rope_parameters": None},
    ],
)
def test_what_has_no_older_words_stays(config: dict[str, Any]) -> None:
    assert legacy_positions(config) == config
