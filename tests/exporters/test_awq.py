"""AWQ: refused from the files alone where it cannot work; a real run of llm-compressor where there is one."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lora_eval.errors import InputError, MissingExtraError, ModelError, VerificationFailed
from lora_eval.export import export
from lora_eval.exporters.awq import check_written
from lora_eval.models import open_folder, read_lineage
from lora_eval.verify import ArmPath, verify
from tests.conftest import save_tiny_llama, save_tiny_tokenizer
from tests.models.test_compressed import save_rounded_awq

ROW = [72, 101, 108, 108, 111]


@pytest.fixture(scope="module")
def quantized(qlora, chats, llm_compressor, tmp_path_factory):
    out = tmp_path_factory.mktemp("quantized") / "awq"
    seen = []
    with contextlib.chdir(qlora):  # a relative path, which the worker, in a folder of its own, must find
        lineage = export(
            "awq",
            base=Path("trained"),
            adapter=None,
            out=out,
            options={"calibration": chats, "samples": 32, "python": llm_compressor},
            progress=lambda what, done, total: seen.append((what, done, total)),
        )
    return out, lineage, seen


@pytest.mark.slow
def test_the_quantized_model_is_stored_whole(quantized):
    out, lineage, seen = quantized
    assert [variant.kind for variant in lineage.variants] == ["base", "adapter", "merged", "awq"]
    assert lineage == read_lineage(out)
    arguments = lineage.steps[-1].arguments
    assert (arguments["bits"], arguments["group_size"], arguments["modules_quantized"]) == (4, 64, 14)
    assert (arguments["sym"], arguments["calibration_rows"]) == (True, 32)
    assert arguments["packages"]["llmcompressor"]
    files = {path.name for path in out.iterdir()}
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json", "lineage.json"} <= files
    assert "recipe.yaml" not in files
    assert seen == [("quantizing", 0, 2), ("quantizing", 1, 2)]


@pytest.mark.slow
def test_it_is_near_the_model_but_not_equal(qlora, quantized, chats):
    merged = ArmPath("merged", "merged", qlora / "trained")
    record = verify(merged, ArmPath("awq", "awq", quantized[0]), chats)
    assert record.expected == "near"
    # Random weights of ten times the usual size: every bit lost is heard. Unrelated models are at 1 to 8.
    assert 1e-4 < record.measured.mean_kl < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "sym", "most"), [(4, False, 0.5), (8, True, 0.01), (8, False, 0.01)])
def test_other_settings(qlora, chats, llm_compressor, tmp_path, bits, sym, most):
    options = {"calibration": chats, "samples": 16, "python": llm_compressor, "bits": bits, "sym": sym}
    export("awq", base=qlora / "trained", adapter=None, out=tmp_path / "awq", options=options)
    record = verify(
        ArmPath("merged", "merged", qlora / "trained"), ArmPath("awq", "awq", tmp_path / "awq"), chats
    )
    assert record.measured.mean_kl < most


@pytest.mark.slow
def test_one_seed_gives_the_same_bytes(qlora, quantized, chats, llm_compressor, tmp_path):
    options = {"calibration": chats, "samples": 32, "python": llm_compressor}
    lineage = export("awq", base=qlora / "trained", adapter=None, out=tmp_path / "awq", options=options)
    assert lineage.variants[-1].fingerprint == quantized[1].variants[-1].fingerprint


@pytest.mark.slow
def test_nothing_is_left_where_llm_compressor_fails(tiny_llama, chats, llm_compressor, tmp_path):
    """Weights that are no numbers: the library finds no scale for them."""
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"].fill_(float("nan"))
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    options = {"calibration": chats, "samples": 4, "python": llm_compressor}
    with pytest.raises((ModelError, VerificationFailed), match=r"llm-compressor cannot quantize|not finite"):
        export("awq", base=model, adapter=None, out=tmp_path / "out", options=options)
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


@pytest.mark.slow
def test_a_model_without_linear_layers_is_refused(chats, llm_compressor, tmp_path):
    """GPT-2's are transposed (Conv1D): llm-compressor passes over them and says nothing."""
    from transformers import GPT2Config, GPT2LMHeadModel

    save_tiny_tokenizer(tmp_path / "gpt2")
    config = GPT2Config(vocab_size=320, n_embd=64, n_layer=1, n_head=2, bos_token_id=257, eos_token_id=257)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    options = {"calibration": chats, "samples": 4, "python": llm_compressor}
    with pytest.raises(ModelError, match=r"has no torch\.nn\.Linear layer but the one that gives the logits"):
        export("awq", base=tmp_path / "gpt2", adapter=None, out=tmp_path / "out", options=options)


def test_what_cannot_work_is_refused_from_the_files(tiny_llama, tiny_adapter, chats, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="merge the adapter first"):
        export("awq", base=tiny_llama, adapter=tiny_adapter, out=out)
    whole = "one scale for a whole row is not offered: AWQ takes the sizes that GPTQ takes"
    for group_size, message in ((-1, whole), (48, "expected one of 32")):
        options = {"calibration": chats, "group_size": group_size}
        with pytest.raises(InputError, match=f"--group-size {group_size}: .*{message}"):
            export("awq", base=tiny_llama, adapter=None, out=out, options=options)
    with pytest.raises(InputError, match="--bits 3: expected 4 or 8"):
        export("awq", base=tiny_llama, adapter=None, out=out, options={"calibration": chats, "bits": 3})
    save_rounded_awq(tiny_llama, tmp_path / "awq")
    with pytest.raises(ModelError, match=r"already quantized \(compressed-tensors\)"):
        export("awq", base=tmp_path / "awq", adapter=None, out=out, options={"calibration": chats})
    assert not out.exists()


def test_an_input_size_that_no_group_divides(tmp_path, chats):
    save_tiny_llama(tmp_path / "model", intermediate_size=172)
    with pytest.raises(ModelError, match=r"down_proj \(172\).*no usual group size \(128, 64, 32\) fits"):
        export(
            "awq", base=tmp_path / "model", adapter=None, out=tmp_path / "o", options={"calibration": chats}
        )


def test_without_compressed_tensors_the_pip_command_is_named(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lora-eval\[awq\]'"):
        export("awq", base=tiny_llama, adapter=None, out=tmp_path / "out")


def test_a_layer_that_was_not_written_is_found(tiny_llama, tmp_path):
    names = list(save_rounded_awq(tiny_llama, tmp_path / "awq"))
    check_written(tmp_path / "awq", names, ROW)
    with pytest.raises(
        VerificationFailed, match=r"1 of 15 quantized layers are not in .*layers\.2\.mlp\.up_proj"
    ):
        check_written(tmp_path / "awq", [*names, "model.layers.2.mlp.up_proj"], ROW)


def test_logits_that_are_no_numbers_are_found(tiny_llama, tmp_path):
    names = list(save_rounded_awq(tiny_llama, tmp_path / "awq"))
    path = tmp_path / "awq" / "model.safetensors"
    tensors = load_file(path)
    tensors[f"{names[0]}.weight_scale"].fill_(float("nan"))
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(VerificationFailed, match="not finite"):
        check_written(tmp_path / "awq", names, ROW)


def test_verify_takes_the_folder_as_an_arm(tiny_llama, chats, tmp_path):
    save_rounded_awq(tiny_llama, tmp_path / "awq", sym=False)
    resident = open_folder(tmp_path / "awq", name="awq")
    assert resident.dtype == "bfloat16"
    record = verify(ArmPath("base", "base", tiny_llama), ArmPath("awq", "awq", tmp_path / "awq"), chats)
    assert record.expected == "near"
    assert 1e-4 < record.measured.mean_kl < 0.5


def test_missing_and_broken_tensors_are_named(tiny_llama, chats, tmp_path):
    """AWQ's weights cannot be compared one by one, but what is not there, or no number, can be told."""
    names = list(save_rounded_awq(tiny_llama, tmp_path / "awq"))
    path = tmp_path / "awq" / "model.safetensors"
    tensors = load_file(path)
    del tensors[f"{names[0]}.weight_scale"], tensors[f"{names[1]}.weight_packed"]
    tensors[f"{names[2]}.weight_scale"].fill_(float("nan"))
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(VerificationFailed) as caught:
        verify(ArmPath("base", "base", tiny_llama), ArmPath("awq", "awq", tmp_path / "awq"), chats)
    said = str(caught.value)
    assert f"{names[0]}.weight_scale: missing in the candidate" in said or "2 tensors)" in said
    assert f"{names[2]}.weight_scale: holds values that are not finite" in said


def test_compare_takes_the_folder_as_an_arm(tiny_llama, run_cli, tmp_path):
    save_rounded_awq(tiny_llama, tmp_path / "awq")
    arms = ("--base", tiny_llama, "--arm", f"shipped=awq:{tmp_path / 'awq'}")
    done = run_cli("compare", *arms, "--suite", "pocket", "--limit", 2, "--out", tmp_path / "out", "--json")
    assert done.status == 0, done.stderr
    shipped = json.loads(done.stdout)["arms"][1]
    assert (shipped["name"], shipped["kind"]) == ("shipped", "awq")
    run = json.loads((tmp_path / "out" / "runs" / "shipped" / "run.json").read_text())
    assert "weights stored as pack-quantized evaluated dequantized, in bfloat16" in json.dumps(run)
