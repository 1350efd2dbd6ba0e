"""`lora-eval export`: what people type, what they get back."""

from __future__ import annotations

import json

import pytest

from tests.conftest import CHECKOUT, save_tiny_adapter


def test_merge_writes_a_model_and_prints_its_lineage(run_cli, tiny_llama, tiny_adapter, tmp_path):
    out = tmp_path / "out"
    done = run_cli("export", "merge", "--base", tiny_llama, "--adapter", tiny_adapter, "--out", out, "--json")
    assert done.status == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((out / "lineage.json").read_text())
    again = run_cli("export", "merge", "--base", tiny_llama, "--adapter", tiny_adapter, "--out", out)
    assert again.status == 2
    assert "is not empty" in again.stderr
    assert again.stdout == ""


def test_a_merge_says_of_how_many_layers_the_values_are_those_of_training(run_cli, tiny_llama, tmp_path):
    from lora_eval.fingerprint import fingerprint_folder
    from lora_eval.models import NF4, load_base, write_lineage
    from lora_eval.models.trained_base import TRAINED_BASE, observe
    from lora_eval.records import Lineage, Variant
    from lora_eval.schema import write_record

    adapter = tmp_path / "adapter"
    save_tiny_adapter(tiny_llama, adapter)
    base = Variant(kind="base", path=str(tiny_llama), fingerprint=fingerprint_folder(tiny_llama))
    write_lineage(adapter, Lineage(variants=(base,), quantization=NF4, base_dtype="bfloat16"))
    given = ("export", "merge", "--base", tiny_llama, "--adapter", adapter, "--no-verify", "--out")
    assert "in training" not in run_cli(*given, tmp_path / "unknown").stderr
    write_record(adapter / TRAINED_BASE, observe(load_base(tiny_llama, dtype="bfloat16", quantization=NF4)))
    done = run_cli(*given, tmp_path / "known")
    assert done.status == 0, done.stderr
    assert "14 of 14 quantized layers hold in every bit what they held in training" in done.stderr


def test_a_merge_with_a_resized_vocabulary_is_verified(run_cli, tiny_llama, tmp_path):
    from lora_eval.models import load_base

    grown = load_base(tiny_llama)
    grown.resize_token_embeddings(330, mean_resizing=False)
    grown.save_pretrained(tmp_path / "grown")
    options = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    save_tiny_adapter(tmp_path / "grown", tmp_path / "adapter", **options)
    given = ("--base", tiny_llama, "--adapter", tmp_path / "adapter", "--out", tmp_path / "out")
    done = run_cli("export", "merge", *given)
    assert done.status == 0, done.stderr
    assert "verified: it is the model that was measured" in done.stderr
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == 330


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("merge", "--base", "./nowhere", "--adapter", "./a"), "nowhere: no such folder"),
        (("gptq", "--model", "./nowhere"), "nowhere: no such folder"),
        (("merg", "--model", "./a"), "Did you mean 'merge'"),
        (("merge", "--base", "./a"), "Missing option '--adapter'"),
    ],
)
def test_what_cannot_work_ends_with_2(run_cli, tmp_path, arguments, said):
    done = run_cli("export", *arguments, "--out", tmp_path / "out")
    assert done.status == 2
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_gptq_names_the_layers_that_do_not_fit(run_cli, tiny_llama, tmp_path):
    calibration = tmp_path / "rows.jsonl"
    calibration.write_text('{"text": "one"}\n')
    options = ("--calibration", calibration, "--group-size", 128, "--out", tmp_path / "out")
    done = run_cli("export", "gptq", "--model", tiny_llama, *options)
    assert done.status == 2
    assert "q_proj (64)" in done.stderr
    assert "group sizes that fit every layer: 64, 32" in done.stderr


def test_calibration_on_benchmark_items_is_refused(run_cli, tiny_llama, tmp_path):
    ticket = json.loads((CHECKOUT / "evals" / "pocket" / "ticket.jsonl").read_text("utf-8").split("\n")[0])
    row = [
        {"role": "user", "content": ticket["question"]},
        {"role": "assistant", "content": ticket["answer"]},
    ]
    calibration = tmp_path / "rows.jsonl"
    calibration.write_text(json.dumps({"messages": row}) + "\n")
    options = ("--calibration", calibration, "--held-out", "pocket", "--out", tmp_path / "out")
    for name in ("gptq", "awq"):
        done = run_cli("export", name, "--model", tiny_llama, *options)
        assert done.status == 2
        assert "the calibration rows hold 1 benchmark items" in done.stderr
        assert "item pocket_ticket 0 in 'Write the ticket." in done.stderr
    assert not (tmp_path / "out").exists()


def test_where_no_benchmark_is_named_it_is_said(run_cli, tiny_llama, tmp_path):
    calibration = tmp_path / "rows.jsonl"
    calibration.write_text('{"text": "one"}\n')
    options = ("--calibration", calibration, "--group-size", -1, "--out", tmp_path / "out")
    done = run_cli("export", "awq", "--model", tiny_llama, *options)
    assert done.status == 2
    assert "note: calibration is checked against no benchmark" in done.stderr
    assert "--group-size -1: one scale for a whole row is not offered" in done.stderr


def test_help_lists_the_exporters_with_examples(run_cli):
    done = run_cli("export", "--help")
    assert done.status == 0
    assert "gptq" in done.stdout
    assert "awq" in done.stdout
    assert "lora-eval export merge --base ./base" in done.stdout


@pytest.mark.usefixtures("plugin_example")
def test_an_exporter_of_another_package(run_cli, tiny_llama, tmp_path):
    assert "Exporter of lora-eval-acme" in run_cli("export", "acme-copy", "--help").stdout
    done = run_cli("export", "acme-copy", "--model", tiny_llama, "--out", tmp_path / "out")
    assert done.status == 0, done.stderr
    done = run_cli(
        "export", "acme-copy", "--model", tiny_llama, "--option", "a=1", "--out", tmp_path / "other"
    )
    assert done.status == 2
    assert "has no option 'a'" in done.stderr
    done = run_cli("export", "acme-copy", "--model", tiny_llama, "--option", "a", "--out", tmp_path / "other")
    assert done.status == 2
    assert "expected KEY=VALUE" in done.stderr


def test_base_writes_what_training_saw(run_cli, tiny_llama, tmp_path):
    options = ("--quantize", "nf4", "--dequantized", "--server", "tgi", "--json")
    done = run_cli("export", "base", "--base", tiny_llama, *options, "--out", tmp_path / "base")
    assert done.status == 0, done.stderr
    assert json.loads(done.stdout)["variants"][-1]["made_by"] == "lora-eval export base"
    assert not (tmp_path / "base" / "chat_template.jinja").exists()


def test_several_adapters_merge_with_weights(run_cli, tiny_llama, tiny_adapter, tmp_path):
    command = ("export", "merge", "--base", tiny_llama, "--adapter", tiny_adapter, "--adapter", tiny_adapter)
    weights = ("--weight", 1, "--weight", -0.5, "--combine", "cat")
    done = run_cli(*command, *weights, "--out", tmp_path / "both", "--json")
    assert done.status == 0, done.stderr
    assert json.loads(done.stdout)["steps"][0]["arguments"]["combine"]["weights"] == [1.0, -0.5]
    done = run_cli(*command, "--weight", 1, "--out", tmp_path / "x")
    assert done.status == 2
    assert "give one for each" in done.stderr
