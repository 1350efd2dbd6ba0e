"""Adapters and configurations that others published, on random bases of their shape.

gpt2-tigrinya-r8 and open-calm-1b-r1 are real weights: with the true widths and a small vocabulary, the first
whole, of the second two of its 24 layers (all of them, 1.6 GB, were merged by hand: docs/export.md). The
configurations of PEFT's own comparison (Llama 3.2 3B) stand on a tiny Llama with the same layers' names and
widths of 64, since only their options matter.
"""

from __future__ import annotations

import json
import shutil
import warnings

import pytest

from lora_eval.errors import ModelError
from lora_eval.export import export
from lora_eval.models.quiet import without_gptqmodel
from lora_eval.records.export import MergeAudit
from lora_eval.schema import read_record
from tests.conftest import CHECKOUT, save_tiny_llama, save_tiny_tokenizer

DATA = CHECKOUT.parent / "shared" / "data" / "adapters"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the adapters are not on this machine")
LLAMA = (
    sorted(path.name for path in (DATA / "peft_configs").glob("MetaMathQA*.json")) if DATA.is_dir() else []
)


def merged_by_peft(base, adapter):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with without_gptqmodel(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base)
        return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


def assert_merge(folder):
    """Export `adapter` on `base`: it must be PEFT's merge in every bit; returns the audit."""
    import torch
    from transformers import AutoModelForCausalLM

    export("merge", base=folder / "base", adapter=folder / "adapter", out=folder / "out")
    found = AutoModelForCausalLM.from_pretrained(folder / "out").state_dict()
    expected = merged_by_peft(folder / "base", folder / "adapter")
    assert found.keys() == expected.keys()
    assert not [name for name in found if not torch.equal(found[name], expected[name])]
    return read_record(folder / "out" / "audit.json", MergeAudit)


@pytest.mark.parametrize(
    ("name", "layers", "depth"),
    [
        pytest.param("gpt2-tigrinya-r8", ".h.", 12, marks=pytest.mark.slow),
        ("open-calm-1b-r1", ".layers.", 2),
    ],
)
def test_real_weights(tmp_path, name, layers, depth):
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

    ends = {"vocab_size": 320, "bos_token_id": 257, "eos_token_id": 257}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name.startswith("gpt2"):
            model = GPT2LMHeadModel(GPT2Config(n_layer=depth, **ends))
        else:
            config = GPTNeoXConfig(hidden_size=2048, num_hidden_layers=depth, num_attention_heads=16,
                                   intermediate_size=256, tie_word_embeddings=False, **ends)  # fmt: skip
            model = GPTNeoXForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    save_tiny_tokenizer(tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    shutil.copyfile(DATA / name / "adapter_config.json", adapter / "adapter_config.json")
    tensors = load_file(DATA / name / "adapter_model.safetensors")
    kept = {key: tensor for key, tensor in tensors.items() if int(key.split(layers)[1].split(".")[0]) < depth}
    assert len(kept) == len(tensors) if depth > 2 else 0 < len(kept) < len(tensors)
    save_file(kept, adapter / "adapter_model.safetensors")
    audit = assert_merge(tmp_path)
    assert len(audit.tensors) == len(kept) // 2
    assert all(row.applied == 1 and row.kept == pytest.approx(1, abs=0.01) for row in audit.tensors)


@pytest.mark.parametrize("name", LLAMA)
def test_published_configurations(tmp_path, name):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    save_tiny_llama(tmp_path / "base", num_hidden_layers=1, num_key_value_heads=2)
    data = json.loads((DATA / "peft_configs" / name).read_text())
    with without_gptqmodel(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), LoraConfig(**data))
        with torch.no_grad():
            for parameter in peft.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.02)
        peft.save_pretrained(tmp_path / "adapter")
    if "kasa" in name:
        with pytest.raises(ModelError, match="kasa_config"):
            assert_merge(tmp_path)
        return
    audit = assert_merge(tmp_path)
    assert {row.how for row in audit.tensors} == {"dora" if data["use_dora"] else "lora"}
