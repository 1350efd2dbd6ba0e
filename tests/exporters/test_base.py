"""`export base` writes the base as training saw it: an adapter on it is the adapter on the quantized base."""

from __future__ import annotations

import json
import shutil

import pytest

from lora_eval.errors import InputError, ModelError
from lora_eval.export import export
from lora_eval.models import read_lineage
from tests.exporters.conftest import QLORA


def load(folder, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"}, **options)


def test_it_is_the_dequantized_model(qlora, tmp_path):
    import torch
    from transformers import BitsAndBytesConfig

    lineage = export("base", base=qlora / "base", adapter=qlora / "adapter", out=tmp_path / "out")
    config = BitsAndBytesConfig(**QLORA)
    expected = (
        load(qlora / "base", dtype=torch.bfloat16, quantization_config=config).dequantize().state_dict()
    )
    found = load(tmp_path / "out").state_dict()
    assert found.keys() == expected.keys()
    assert not [name for name in found if not torch.equal(found[name], expected[name])]
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert [variant.kind for variant in lineage.variants] == ["base", "base"]
    assert lineage.variants[1].parent == lineage.variants[0].fingerprint
    assert lineage.steps[-1].arguments["layers_quantized"] == 14
    assert lineage == read_lineage(tmp_path / "out")
    # The adapter's own tokenizer and settings stay with the adapter.
    assert not (tmp_path / "out" / "audit.json").exists()


def test_the_merge_is_the_adapter_on_it(qlora, tmp_path):
    """Serving the adapter on this base and serving the merge are the same sum."""
    import torch

    export("base", base=qlora / "base", adapter=None, out=tmp_path / "base", options={"quantize": "nf4"})
    adapter = tmp_path / "adapter"
    shutil.copytree(qlora / "adapter", adapter, ignore=shutil.ignore_patterns("lineage.json"))
    export(
        "merge", base=tmp_path / "base", adapter=adapter, out=tmp_path / "out", options={"onto": "original"}
    )
    found, expected = (load(folder).state_dict() for folder in (tmp_path / "out", qlora / "trained"))
    assert not [name for name in found if not torch.equal(found[name], expected[name])]


def test_fp4_and_a_file_of_arguments(qlora, tmp_path):
    import torch

    arguments = {**QLORA, "bnb_4bit_quant_type": "fp4", "quant_method": "bitsandbytes", "_load_in_4bit": True}
    (tmp_path / "bnb.json").write_text(json.dumps(arguments))
    for name, given in (("a", "fp4"), ("b", str(tmp_path / "bnb.json")), ("c", "nf4")):
        export("base", base=qlora / "base", adapter=None, out=tmp_path / name, options={"quantize": given})
    first, second, other = (load(tmp_path / name).state_dict() for name in "abc")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("options", [{}, {"quantize": "none"}])
def test_it_needs_to_know_the_quantization(qlora, tmp_path, options):
    with pytest.raises(ModelError, match="nothing says how the base was quantized"):
        export("base", base=qlora / "base", adapter=None, out=tmp_path / "out", options=options)


def test_a_quantization_that_is_none(qlora, tmp_path):
    with pytest.raises(InputError, match="expected one of nf4, fp4, none"):
        export("base", base=qlora / "base", adapter=None, out=tmp_path / "out", options={"quantize": "nf5"})
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(InputError, match="a JSON object"):
        export("base", base=qlora / "base", adapter=None, out=tmp_path / "out",
               options={"quantize": str(tmp_path / "list.json")})  # fmt: skip


def test_rows_that_end_within_a_block_are_mentioned(tmp_path):
    from tests.conftest import save_tiny_llama

    save_tiny_llama(tmp_path / "base", hidden_size=96, num_hidden_layers=1)
    lineage = export("base", base=tmp_path / "base", adapter=None, out=tmp_path / "out",
                     options={"quantize": "nf4"})  # fmt: skip
    assert "do not end with a block of 64" in lineage.steps[-1].arguments["notes"][0]
