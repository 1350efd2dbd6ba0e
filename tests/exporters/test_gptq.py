"""GPTQ: shapes are checked before anything is loaded; the result is normalised and near the model."""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lora_eval.errors import InputError, MissingExtraError, ModelError
from lora_eval.export import export
from lora_eval.exporters.base_files import linear_inputs
from lora_eval.exporters.gptq import require_gptqmodel
from lora_eval.exporters.gptq_worker import check_reload
from lora_eval.exporters.quantize import Calibration, check_group_size, choose_group_size, few_tokens
from lora_eval.models import read_lineage
from lora_eval.verify import ArmPath, verify
from tests.conftest import save_tiny_llama, save_tiny_tokenizer


@pytest.fixture(scope="module")
def quantized(qlora, chats, tmp_path_factory):
    out = tmp_path_factory.mktemp("quantized") / "gptq"
    seen = []
    with contextlib.chdir(qlora):  # a relative path, which the worker, in a folder of its own, must find
        lineage = export(
            "gptq",
            base=Path("trained"),
            adapter=None,
            out=out,
            options={"calibration": chats, "samples": 32},
            progress=lambda what, done, total: seen.append((what, done, total)),
        )
    return out, lineage, seen


def test_the_quantized_model_is_stored_whole_and_normalised(quantized):
    out, lineage, seen = quantized
    assert [variant.kind for variant in lineage.variants] == ["base", "adapter", "merged", "gptq"]
    assert lineage == read_lineage(out)
    arguments = lineage.steps[-1].arguments
    assert (arguments["bits"], arguments["group_size"], arguments["modules_quantized"]) == (4, 64, 14)
    assert (arguments["sym"], arguments["desc_act"], arguments["calibration_rows"]) == (True, False, 32)
    for name in ("config.json", "quantize_config.json"):
        text = (out / name).read_text()
        assert "offload_to_disk_path" not in text
        assert "lora-eval-gptq" not in text  # the worker's temporary folder
    assert (out / "tokenizer.json").is_file()
    assert (out / "chat_template.jinja").is_file()
    assert seen[-1] == ("quantizing", 2, 2)


# Loading a GPTQ model makes gptqmodel create a temporary folder, which it leaves to the garbage collector.
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
def test_it_is_near_the_model_but_not_equal(qlora, quantized, chats):
    merged = ArmPath("merged", "merged", qlora / "trained")
    record = verify(merged, ArmPath("gptq", "gptq", quantized[0]), chats)
    assert record.expected == "near"
    # Random weights of ten times the usual size: every bit lost is heard. Unrelated models are at 1 to 8.
    assert 1e-4 < record.measured.mean_kl < 0.5
    gc.collect()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
@pytest.mark.parametrize(
    ("options", "most", "said"),
    [
        ({"bits": 8}, 0.01, "does not serve 8-bit GPTQ models on a CPU"),
        ({"sym": False}, 0.5, "refuses asymmetric"),
        ({"desc_act": True}, 0.5, "refuses GPTQ models with desc_act"),
    ],
)
def test_other_settings(qlora, chats, tmp_path, options, most, said):
    out = tmp_path / "gptq"
    given = {"calibration": chats, "samples": 16} | options
    arguments = (
        export("gptq", base=qlora / "trained", adapter=None, out=out, options=given).steps[-1].arguments
    )
    stored = json.loads((out / "quantize_config.json").read_text())
    for name in ("bits", "sym", "desc_act"):
        assert stored[name] == arguments[name] == options.get(name, {"bits": 4, "sym": True}.get(name, False))
    assert [note for note in arguments["notes"] if said in note]
    record = verify(ArmPath("merged", "merged", qlora / "trained"), ArmPath("gptq", "gptq", out), chats)
    assert record.measured.mean_kl < most
    gc.collect()


def test_short_rows_count_and_too_few_are_told(qlora, tmp_path):
    """gptqmodel leaves out rows of up to ten tokens by default, and divides by zero where no row is left."""
    (tmp_path / "short.jsonl").write_text('{"text": "Hi"}\n' * 3)
    options = {"calibration": tmp_path / "short.jsonl"}
    lineage = export("gptq", base=qlora / "trained", adapter=None, out=tmp_path / "out", options=options)
    arguments = lineage.steps[-1].arguments
    assert (arguments["calibration_rows"], arguments["calibration_tokens"]) == (3, 6)
    assert arguments["notes"] == [
        "only 6 tokens calibrate layers of up to 128 input columns: give more rows (--calibration, --samples)"
    ]
    enough = Calibration([], [[1] * 64, [1] * 64], {})
    assert few_tokens(enough, {"a": 64, "b": 128}) == []
    assert few_tokens(enough, {"a": 64, "b": 129}) != []


@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
def test_logits_that_are_no_numbers_and_lost_layers_are_found(quantized, tmp_path):
    folder = shutil.copytree(quantized[0], tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    names = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    with pytest.raises(RuntimeError, match="15 modules were quantized, 14 are after loading again"):
        check_reload(folder, [*names, "model.layers.2.mlp.up_proj"], [1, 2, 3])
    tensors["model.norm.weight"].fill_(float("nan"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError, match="logits that are not finite"):
        check_reload(folder, names, [1, 2, 3])
    gc.collect()


def test_a_model_that_does_not_open_quantized_is_refused(chats, tmp_path):
    """GPT-2: gptqmodel writes it, transformers 5.23 cannot open it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    save_tiny_tokenizer(tmp_path / "gpt2")
    config = GPT2Config(vocab_size=320, n_embd=64, n_layer=1, n_head=2, bos_token_id=257, eos_token_id=257)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    options = {"calibration": chats, "samples": 4}
    with pytest.raises(ModelError, match="RuntimeError: transformers cannot open the quantized model"):
        export("gptq", base=tmp_path / "gpt2", adapter=None, out=tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_one_seed_gives_the_same_bytes(qlora, quantized, chats, tmp_path):
    options = {"calibration": chats, "samples": 32}
    lineage = export("gptq", base=qlora / "trained", adapter=None, out=tmp_path / "gptq", options=options)
    assert lineage.variants[-1].fingerprint == quantized[1].variants[-1].fingerprint


def test_a_quantized_model_is_not_quantized_again(quantized, chats, tmp_path):
    with pytest.raises(ModelError, match="already quantized"):
        export("gptq", base=quantized[0], adapter=None, out=tmp_path / "out", options={"calibration": chats})


def test_an_input_size_that_no_group_divides(tmp_path, chats):
    """As in stories260K: 172 input columns of down_proj."""
    save_tiny_llama(tmp_path / "model", intermediate_size=172)
    with pytest.raises(ModelError) as caught:
        export(
            "gptq",
            base=tmp_path / "model",
            adapter=None,
            out=tmp_path / "out",
            options={"calibration": chats},
        )
    message = str(caught.value)
    assert "model.layers.0.mlp.down_proj (172)" in message
    assert "input size of 2 layers" in message
    assert "no usual group size (128, 64, 32) fits" in message
    assert not (tmp_path / "out").exists()


def test_the_sizes_that_would_fit_are_named(tiny_llama):
    inputs = linear_inputs(tiny_llama)
    assert set(inputs.values()) == {64, 128}
    assert not any("lm_head" in name for name in inputs)
    assert choose_group_size(tiny_llama, inputs, None) == 64
    assert choose_group_size(tiny_llama, inputs, 32) == 32
    with pytest.raises(ModelError, match=r"group size 128 does not divide .*fit every layer: 64, 32"):
        choose_group_size(tiny_llama, inputs, 128)
    with pytest.raises(InputError, match="--group-size 48: expected one of 32, 64, 128"):
        check_group_size(48, "gptq")
    with pytest.raises(InputError, match=r"--group-size -1: .*gptqmodel refuses it"):
        check_group_size(-1, "gptq")


def test_without_gptqmodel_the_pip_command_is_named(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(MissingExtraError, match=r"gptqmodel and optimum.*pip install 'lora-eval\[gptq\]'"):
        require_gptqmodel()


def test_a_hidden_gptqmodel_is_still_found(monkeypatch):
    monkeypatch.setitem(sys.modules, "gptqmodel", None)
    assert require_gptqmodel() is None  # raises where it is not found


def test_an_adapter_must_be_merged_first(tiny_llama, tiny_adapter, tmp_path):
    with pytest.raises(InputError, match="merge the adapter first"):
        export("gptq", base=tiny_llama, adapter=tiny_adapter, out=tmp_path / "out")
