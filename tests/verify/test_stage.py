"""The faithful merge passes, every damaged or different model fails, and the record says why."""

from __future__ import annotations

import json
import shutil

import pytest

from lora_eval.errors import DataError, InputError, VerificationFailed
from lora_eval.fingerprint import fingerprint_folder
from lora_eval.records import Verification
from lora_eval.schema import read_record
from lora_eval.verify import ArmPath, Options, parse_arm_path, verify


def merged(path):
    return ArmPath("shipped", "merged", path)


def copy(folder, target):
    return shutil.copytree(folder, target)


def edit_weights(folder, change):
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_the_faithful_merge_passes(qlora, adapter, prompts, tmp_path):
    out = tmp_path / "deep" / "verification.json"
    record = verify(adapter, merged(qlora / "trained"), prompts, out)
    assert record.passed, record.failures
    assert read_record(out, Verification) == record
    assert record.floor.mean_kl > 0
    assert 0 < record.measured.mean_kl < 3 * record.floor.mean_kl
    assert (record.measured.items, record.expected) == (24, "equal")
    assert record.reference.fingerprint == fingerprint_folder(qlora / "adapter")
    assert record.candidate.fingerprint == fingerprint_folder(qlora / "trained")
    assert "bfloat16" in record.tolerance_source


def test_the_merge_into_the_original_base_is_told_apart(qlora, adapter, prompts):
    record = verify(adapter, merged(qlora / "original"), prompts)
    assert not record.passed
    assert record.measured.mean_kl > 50 * record.floor.mean_kl
    assert "kl_mean is" in record.failures[0]


def test_an_arm_is_exactly_itself(qlora, adapter, prompts):
    record = verify(adapter, adapter, prompts, options=Options(samples=8))
    assert record.passed
    assert (record.measured.mean_kl, record.measured.max_kl, record.measured.item_flips) == (0, 0, 0)
    assert record.measured.top1_agreement == 1
    assert record.measured.items == 8


def test_one_damaged_tensor_fails(qlora, prompts, tmp_path):
    """Without the adapter's noise in between: a merged model against a copy with 1 of 14 layers swapped."""
    folder = copy(qlora / "trained", tmp_path / "damaged")

    def swap(tensors):
        name = "model.layers.1.self_attn.q_proj.weight"
        tensors[name] = tensors[name].roll(1, 0).contiguous()

    edit_weights(folder, swap)
    record = verify(merged(qlora / "trained"), merged(folder), prompts)
    assert not record.passed
    assert verify(merged(qlora / "trained"), merged(qlora / "trained"), prompts).passed


def test_another_chat_template_fails_though_the_weights_are_equal(qlora, prompts, tmp_path):
    folder = copy(qlora / "trained", tmp_path / "other")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "<|im_end|>"))
    record = verify(merged(qlora / "trained"), merged(folder), prompts, options=Options(samples=4))
    assert record.measured.max_kl == 0
    assert not record.passed
    assert record.failures[0].startswith("the candidate's chat template is another one: at character 42 it")
    assert "4 of 4 prompts become other token ids" in record.failures[1]


def test_other_stop_tokens_fail_though_the_weights_are_equal(qlora, prompts, tmp_path):
    folder = copy(qlora / "trained", tmp_path / "other")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 10}))
    record = verify(merged(qlora / "trained"), merged(folder), prompts, options=Options(samples=4))
    assert not record.passed
    assert "stops at token 10, the reference's at 257" in record.failures[0]


def test_a_lost_token_is_no_comparison(qlora, prompts, tmp_path):
    folder = copy(qlora / "trained", tmp_path / "shorter")
    edit_weights(
        folder,
        lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"][:300].clone()}),
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    with pytest.raises(VerificationFailed, match="320 next tokens, the candidate 300"):
        verify(merged(qlora / "trained"), merged(folder), prompts)


def test_limits_by_hand_decide(qlora, adapter, prompts):
    options = Options(samples=4, tolerance={"kl_mean": 10.0, "kl_p99": 10.0, "top1": 0.0})
    assert verify(adapter, merged(qlora / "original"), prompts, options=options).passed


def test_near_needs_no_floor(qlora, prompts):
    options = Options(samples=4, expected="near")
    record = verify(merged(qlora / "trained"), merged(qlora / "original"), prompts, options=options)
    assert record.floor is None
    assert not record.passed  # another model by far more than 4-bit weights are


def test_prompts_of_a_stored_run(qlora, tmp_path):
    from lora_eval.records import Run, SampleRow, Variant
    from lora_eval.runstore import write_run

    rows = [
        SampleRow(task="t", item_id=n // 2, doc_hash="", filter=f"f{n % 2}", repeat=0, prompt_sha256="",
                  prompt=f"Item {n // 2} is", target="", output="", metrics={})
        for n in range(10)
    ]  # fmt: skip
    run = Run(arm="a", variant=Variant(kind="base", path=""), suite="s", suite_fingerprint="", engine="e",
              dtype="float32")  # fmt: skip
    write_run(tmp_path / "run", run, rows)
    record = verify(
        merged(qlora / "trained"), merged(qlora / "trained"), tmp_path / "run", options=Options(samples=4)
    )
    assert record.measured.items == 4
    record = verify(merged(qlora / "trained"), merged(qlora / "trained"), tmp_path / "run")
    assert record.measured.items == 5  # each prompt once, though two filters scored it


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "holds no row"), ('{"text": "fine"}\n{"text": 3}\nnot json\n', "faulty rows at line 2, 3"),
     ('{"messages": [{"role": "user"}]}', "faulty rows at line 1: ")],
)  # fmt: skip
def test_faulty_prompts(qlora, tmp_path, content, said):
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=said):
        verify(merged(qlora / "trained"), merged(qlora / "trained"), path)


@pytest.mark.parametrize(("begins", "found"), [([1, 2], [(1, 2, 3, 4)]), ([9, 2], [])])
def test_a_held_out_answer_goes_on_from_its_prompt(begins, found):
    """Where a template renders a whole conversation otherwise than its prompt, no answer is told apart."""
    from types import SimpleNamespace

    from lora_eval.verify.prompts import held_out, prompt_ids

    def render(messages, *, tokenize, return_dict, add_generation_prompt):
        return {"input_ids": begins if add_generation_prompt else [1, 2, 3, 4]}

    tokenizer = SimpleNamespace(chat_template="x", name_or_path="mine", apply_chat_template=render)
    rows = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]]
    texts = held_out(tokenizer, rows, prompt_ids(tokenizer, rows, 10), 10)
    assert [text.ids for text in texts.values()] == found


def test_arms_are_found_and_named(qlora, tmp_path):
    base = qlora / "base"
    arm = parse_arm_path(f"mine=adapter:{qlora / 'adapter'}", base, option="--reference")
    assert (arm.name, arm.kind, arm.base) == ("mine", "adapter", base)
    assert parse_arm_path(str(qlora / "adapter"), base, option="--reference").kind == "adapter"
    assert parse_arm_path(str(qlora / "trained"), None, option="--candidate").kind == "merged"
    assert parse_arm_path(f"base:{base}", None, option="--candidate").name == "base"
    with pytest.raises(InputError, match="give --base"):
        parse_arm_path(f"adapter:{qlora / 'adapter'}", None, option="--reference")
    with pytest.raises(InputError, match="did you mean 'merged'"):
        parse_arm_path(f"megred:{qlora / 'trained'}", None, option="--candidate")
    with pytest.raises(InputError, match="no such folder"):
        parse_arm_path(f"merged:{tmp_path / 'nowhere'}", None, option="--candidate")
    for served in ("served:http://localhost:8000/v1", "mine=http://localhost:8000/v1"):
        with pytest.raises(
            InputError, match=r"a server tells the probabilities of a few .*`lora-eval smoke`"
        ):
            parse_arm_path(served, None, option="--candidate")
    with pytest.raises(InputError, match=r"gguf:.*: llama\.cpp's files cannot be opened here"):
        parse_arm_path(f"gguf:{qlora / 'trained'}", None, option="--candidate")
