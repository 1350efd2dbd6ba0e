"""Every way we know to ship another model than the measured one is caught, and the message says which it was.

Real merges by our exporter of a tiny model trained under NF4 (by its lineage), then damaged. Their
lineage.json is taken away first, so that the damage itself has to be found, not only that something changed.
"""

from __future__ import annotations

import json
import shutil

import pytest

from lora_eval.errors import VerificationFailed
from lora_eval.export import export
from lora_eval.models.quiet import without_gptqmodel
from lora_eval.verify import ArmPath, Options, verify
from tests.conftest import save_tiny_adapter, save_tiny_llama
from tests.exporters.conftest import QLORA

Q, K = "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj"
PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with `base` (bf16, as many key-value heads as heads), `adapter` (whose tokenizer has one token
    more) and `merged`.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lora_eval.fingerprint import fingerprint_folder
    from lora_eval.models import write_lineage
    from lora_eval.records import Lineage, Variant

    folder = tmp_path_factory.mktemp("mutations")
    save_tiny_llama(folder / "base", num_key_value_heads=2)
    AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16).save_pretrained(
        folder / "base"
    )
    with without_gptqmodel():
        save_tiny_adapter(folder / "base", folder / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.add_tokens(["<|tool|>"], special_tokens=True)
    tokenizer.save_pretrained(folder / "adapter")
    base = Variant(kind="base", path="base", fingerprint=fingerprint_folder(folder / "base"))
    adapter = Variant(kind="adapter", path="adapter", fingerprint=fingerprint_folder(folder / "adapter"))
    write_lineage(
        folder / "adapter", Lineage(variants=(base, adapter), quantization=QLORA, base_dtype="bfloat16")
    )
    for out, onto in (("merged", "trained"), ("original", "original")):
        export("merge", base=folder / "base", adapter=folder / "adapter", out=folder / out,
               options={"onto": onto})  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def check(models, prompts, tmp_path_factory):
    """`check(folder)` verifies a candidate against the adapter; the reference's logits are kept meanwhile."""
    store = tmp_path_factory.mktemp("store")
    reference = ArmPath("mine", "adapter", models / "adapter", base=models / "base")
    return lambda folder: verify(
        reference, ArmPath("shipped", "merged", folder), prompts, options=Options(store=store)
    )


@pytest.fixture
def shipped(models, tmp_path):
    """A copy of the right merge without its lineage, to damage."""
    folder = shutil.copytree(models / "merged", tmp_path / "shipped")
    (folder / "lineage.json").unlink()
    return folder


def delta(models, module):
    from safetensors.torch import load_file

    tensors = load_file(models / "adapter" / "adapter_model.safetensors")
    a, b = (tensors[f"{PREFIX}{module}.lora_{part}.weight"].float() for part in "AB")
    return 2 * (b @ a)  # lora_alpha 8 over r 4


def edit(folder, change):
    """`change` gets the tensors by name."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def add(models, folder, times, modules=None):
    """Add the adapter's change `times` more to the modules (all that it has)."""

    def change(tensors):
        for name in tensors:
            module = name.removesuffix(".weight")
            if module in modules if modules else "_proj" in name:
                tensors[name] = (tensors[name].float() + times * delta(models, module)).bfloat16()

    edit(folder, change)


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_right_merge_passes_and_has_no_cause(models, shipped, check):
    for folder in (models / "merged", shipped):
        record = check(folder)
        assert record.passed, record.failures
        assert record.causes == ()


def test_a_doubled_delta(models, shipped, check):
    add(models, shipped, 1)
    record = check(shipped)
    assert not record.passed
    assert record.causes == (
        "model.layers.0.mlp.down_proj, model.layers.0.mlp.gate_proj, model.layers.0.mlp.up_proj and 11 more "
        "(14 of 20 tensors): delta applied twice (or scaled by 2 times the trained scaling)",
    )


def test_a_delta_doubled_in_one_layer(models, shipped, check):
    add(models, shipped, 1, modules=[Q])
    record = check(shipped)
    assert not record.passed
    assert record.causes == (f"{Q}: delta applied twice (or scaled by 2 times the trained scaling)",)


@pytest.mark.parametrize(("times", "said"), [(-0.5, "scaling is 0.5 times the trained one"),
                                             (3.0, "scaling is 4 times the trained one"),
                                             (-1.0, "the adapter's change is not in it")])  # fmt: skip
def test_a_wrong_scaling(models, shipped, check, times, said):
    add(models, shipped, times)
    record = check(shipped)
    assert not record.passed
    [cause] = record.causes
    assert cause.endswith(f"(14 of 20 tensors): {said}")


def test_a_missing_layer(shipped, check):
    edit(shipped, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layers.1." in name])
    change_json(shipped / "config.json", num_hidden_layers=1, layer_types=["full_attention"])
    record = check(shipped)
    assert not record.passed
    assert "config.json: num_hidden_layers is 1, the reference's is 2" in record.causes
    assert "model.layers.1: missing in the candidate (9 tensors)" in record.causes


def test_a_missing_tensor(shipped, check):
    """Such a model opens: transformers draws the weight at random."""
    edit(shipped, lambda tensors: tensors.pop(f"{K}.weight"))
    record = check(shipped)
    assert not record.passed
    assert record.causes == (f"{K}.weight: missing in the candidate",)


def test_swapped_q_and_k(shipped, check):
    def swap(tensors):
        q, k = f"{Q}.weight", f"{K}.weight"
        tensors[q], tensors[k] = tensors[k].clone(), tensors[q].clone()

    edit(shipped, swap)
    record = check(shipped)
    assert not record.passed
    assert set(record.causes) == {
        f"{K}: holds the weight of {Q}.weight",
        f"{Q}: holds the weight of {K}.weight",
    }


def test_the_original_base(models, check):
    record = check(models / "original")
    assert not record.passed
    [cause] = record.causes
    assert cause.endswith(
        "(14 of 20 tensors): lies on the original 16-bit base, not on the quantized one that was trained"
    )


@pytest.mark.filterwarnings("ignore:Merge lora module to 4-bit linear")
def test_the_merge_that_peft_makes_of_the_quantized_model(models, shipped, check):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = BitsAndBytesConfig(**QLORA)
    with without_gptqmodel():
        model = AutoModelForCausalLM.from_pretrained(
            models / "base", dtype=torch.bfloat16, quantization_config=quantization, device_map={"": "cpu"}
        )
        merged = PeftModel.from_pretrained(model, models / "adapter").merge_and_unload()
    state = merged.dequantize().state_dict()
    edit(shipped, lambda tensors: tensors.update({n: state[n].clone() for n in tensors if "_proj" in n}))
    record = check(shipped)
    assert not record.passed
    [cause] = record.causes
    assert "(14 of 20 tensors): was quantized again after the merge" in cause


def test_a_lost_token(models, shipped, check):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(models / "base" / name, shipped / name)
    record = check(shipped)
    assert record.measured.mean_kl < record.tolerance["kl_mean"]  # the weights are right
    assert record.failures == (
        "the candidate's tokenizer lacks 1 tokens of the reference's: '<|tool|>' (259)",
    )


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (False, "reads 1 added tokens of the reference's as ordinary text: '<|tool|>' (259)"),
        (True, "takes 1 special tokens of the reference's for ordinary ones: '<|tool|>' (259)"),
    ],
)
def test_an_added_token_that_is_only_a_word_of_the_vocabulary(shipped, check, keep, said):
    """Its id is still there, but no text becomes it any more; or it is kept in what is decoded."""
    path = shipped / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] |= {token["content"]: token["id"] for token in content["added_tokens"]}
    [token] = [token for token in content["added_tokens"] if token["content"] == "<|tool|>"]
    if keep:
        token["special"] = False
    else:
        content["added_tokens"].remove(token)
    path.write_text(json.dumps(content))
    record = check(shipped)
    assert f"the candidate's tokenizer {said}" in record.failures


def test_lost_rows_of_the_vocabulary(shipped, check):
    edit(
        shipped,
        lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"][:300].clone()}),
    )
    change_json(shipped / "config.json", vocab_size=300)
    with pytest.raises(VerificationFailed) as caught:
        check(shipped)
    assert "320 next tokens, the candidate 300" in str(caught.value)
    assert "model.embed_tokens: has shape [300, 64], not [320, 64]" in str(caught.value)
    assert "config.json: vocab_size is 300, the reference's is 320" in str(caught.value)


def test_another_template(shipped, check):
    path = shipped / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant\n", "assistant "))
    record = check(shipped)
    assert record.failures[0].startswith("the candidate's chat template is another one: at character")
    assert record.failures[1].startswith("24 of 24 prompts become other token ids")


def test_a_lost_template(shipped, check):
    (shipped / "chat_template.jinja").unlink()
    path = shipped / "tokenizer_config.json"
    path.write_text(
        json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "chat_template"})
    )
    record = check(shipped)
    assert record.failures[0] == "the candidate has no chat template; the reference has one"


def test_another_end_of_generation(shipped, check):
    change_json(shipped / "generation_config.json", eos_token_id=[257, 256])
    record = check(shipped)
    assert record.failures == (
        "the candidate's generation stops at token 256, 257, the reference's at 257 (eos_token_id of "
        "generation_config.json)",
    )


def test_another_end_of_sequence_of_the_tokenizer(shipped, check):
    change_json(shipped / "tokenizer_config.json", eos_token="<|pad|>")
    record = check(shipped)
    assert record.failures == (
        "the candidate's tokenizer has the eos_token '<|pad|>' (258), the reference's '<|im_end|>' (257)",
    )


def test_a_truncated_file(shipped, check):
    path = shipped / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(VerificationFailed, match=f"is {len(content) - 100} bytes long, its header promises"):
        check(shipped)


def test_a_truncated_shard_and_a_lost_one(models, check, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(models / "merged")
    folder = shutil.copytree(models / "merged", tmp_path / "sharded", ignore=lambda *_: ["model.safetensors"])
    model.save_pretrained(folder, max_shard_size="60KB")
    (folder / "lineage.json").unlink()
    assert check(folder).passed
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    content = shards[1].read_bytes()
    shards[1].write_bytes(content[: len(content) // 2])
    with pytest.raises(VerificationFailed, match=f"{shards[1].name}: is {len(content) // 2} bytes long"):
        check(folder)
    shards[1].unlink()
    with pytest.raises(VerificationFailed, match=f"not there, first {shards[1].name}"):
        check(folder)


def test_a_shard_without_a_tensor_that_the_index_promises(models, check, tmp_path):
    """The shard is whole by its own header, as where a shard of another save took its place."""
    folder = shutil.copytree(models / "merged", tmp_path / "sharded")
    names = {f"{name}.weight": "model.safetensors" for name in (Q, K)}
    index = {"metadata": {}, "weight_map": names | {"model.layers.9.mlp.up_proj.weight": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    said = (
        r"model\.safetensors: lacks model\.layers\.9\.mlp\.up_proj\.weight, which model\.safetensors\.index"
    )
    with pytest.raises(VerificationFailed, match=said):
        check(folder)


@pytest.mark.parametrize("bit", [14, 12, 6])  # of bf16: the largest of the exponent, another, of the mantissa
def test_a_flipped_bit_is_named_to_the_element(models, check, tmp_path, bit):
    """With its lineage: a bit may change no answer, but the file is not what was written."""
    import torch

    folder = shutil.copytree(models / "merged", tmp_path / "flipped")

    def flip(tensors):
        bits = tensors[f"{Q}.weight"].view(torch.int16)
        bits[3, 5] ^= 1 << bit

    edit(folder, flip)
    try:
        record = check(folder)
        assert not record.passed
        said = (*record.failures, *record.causes)
    except VerificationFailed as error:  # finite nowhere any more
        said = str(error).split("\n  ")
    assert any(line.startswith("the candidate's files were changed after it was made") for line in said)
    assert any(line.startswith(f"{Q}: 1 of 4096 elements are not what was written, the first at [3, 5]")
               for line in said)  # fmt: skip


def test_one_damaged_weight_is_found_though_no_answer_changes(shipped, check):
    """Without lineage: the tensors of a merge are compared in any case."""
    edit(shipped, lambda t: t[f"{Q}.weight"][3].__setitem__(5, 0.0))
    record = check(shipped)
    assert record.measured.mean_kl < record.tolerance["kl_mean"]
    assert record.failures == ("weights are not those that the reference's files give, whatever the answers",)
    [cause] = record.causes
    assert cause.startswith(
        f"{Q}: 1 of 4096 elements are not what was written, the first at [3, 5]: 0 in place"
    )


def test_weights_that_are_no_numbers(shipped, check):
    edit(shipped, lambda t: t["model.norm.weight"].fill_(float("nan")))
    with pytest.raises(VerificationFailed) as caught:
        check(shipped)
    assert "finite at none of" in str(caught.value)
    assert "model.norm: 64 of 64 elements are not finite" in str(caught.value)


def test_the_merge_of_another_adapter(models, check, tmp_path):
    with without_gptqmodel():
        save_tiny_adapter(models / "base", tmp_path / "adapter", seed=9)
    export("merge", base=models / "base", adapter=tmp_path / "adapter", out=tmp_path / "merged",
           options={"quantize": "nf4"})  # fmt: skip
    record = check(tmp_path / "merged")
    assert not record.passed
    assert any(cause.startswith("lineage.json: made from the adapter sha256:") for cause in record.causes)
    assert any("is another weight (relative distance" in cause for cause in record.causes)


KINDS = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 3}},
    "whole": {"modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"]},
    "norm": {"modules_to_save": ["norm"], "target_modules": ["q_proj", "down_proj"]},
    "tokens": {"trainable_token_indices": [5, 9], "target_modules": ["v_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
}


@pytest.mark.filterwarnings("ignore:Model has.*tie_word_embeddings", "ignore:Setting `save_embedding")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_no_false_alarm_for_any_kind_of_adapter(prompts, tmp_path, kind, tied):
    """What the exporter merges, the comparison of tensors knows: no kind of adapter looks like damage."""
    save_tiny_llama(tmp_path / "base", tie_word_embeddings=tied)
    with without_gptqmodel():
        save_tiny_adapter(tmp_path / "base", tmp_path / "adapter", **KINDS[kind])
    export("merge", base=tmp_path / "base", adapter=tmp_path / "adapter", out=tmp_path / "merged",
           options={"onto": "original"})  # fmt: skip
    reference = ArmPath("mine", "adapter", tmp_path / "adapter", base=tmp_path / "base")
    record = verify(
        reference, ArmPath("shipped", "merged", tmp_path / "merged"), prompts, options=Options(samples=4)
    )
    assert record.passed, (record.failures, record.causes)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("seed", range(8))
def test_no_false_alarm(models, prompts, tmp_path, seed, dtype):
    """Right merges of other random adapters pass, in both precisions."""
    with without_gptqmodel():
        save_tiny_adapter(models / "base", tmp_path / "adapter", seed=100 + seed)
    shutil.copyfile(models / "adapter" / "lineage.json", tmp_path / "adapter" / "lineage.json")
    export("merge", base=models / "base", adapter=tmp_path / "adapter", out=tmp_path / "merged",
           options={"dtype": dtype})  # fmt: skip
    reference = ArmPath("mine", "adapter", tmp_path / "adapter", base=models / "base")
    record = verify(reference, ArmPath("shipped", "merged", tmp_path / "merged"), prompts)
    assert record.passed, record.failures
    assert record.measured.mean_kl < 2 * record.floor.mean_kl
