"""Each weight taken apart: how often the adapter's change is in it, and which base it lies on."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_eval.verify import ArmPath
from lora_eval.verify.diagnose import diagnose
from lora_eval.verify.expected import Expected, Parts
from lora_eval.verify.explain import explain

SHAPE = (48, 64)


def drawn(seed, scale=1.0, shape=SHAPE):
    import torch

    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(seed, *, times, original, dtype):
    """A weight with `times` the change, on the trained base (0) or the original (1); what it should be."""
    import torch

    kind = getattr(torch, dtype)
    base, delta, away = drawn(seed), drawn(seed + 1, 0.05), drawn(seed + 2, 0.1)
    parts = Parts(base, base + away, delta, None)
    found = (base + times * delta + original * away).to(kind)
    return found, Expected((base + delta).to(kind), lambda: parts)


@given(
    seed=st.integers(0, 2**16),
    times=st.sampled_from([0.0, 0.5, 0.95, 1.0, 1.05, 2.0, 4.0, -1.0]),
    original=st.sampled_from([0, 1]),
    dtype=st.sampled_from(["bfloat16", "float16", "float32"]),
)
@settings(max_examples=60, deadline=None)
def test_both_shares_are_found_in_every_precision(seed, times, original, dtype):
    said = explain(*weights(seed, times=times, original=original, dtype=dtype))
    words = {
        0.0: "the adapter's change is not in it",
        0.5: "scaling is 0.5 times the trained one",
        0.95: "scaling is 0.95 times the trained one",
        1.0: None,
        1.05: "scaling is 1.05 times the trained one",
        2.0: "delta applied twice (or scaled by 2 times the trained scaling)",
        4.0: "scaling is 4 times the trained one",
        -1.0: "scaling is -1 times the trained one",
    }
    base = "lies on the original 16-bit base, not on the quantized one that was trained" if original else None
    assert said == ("; ".join(part for part in (base, words[times]) if part) or None)


@given(seed=st.integers(0, 2**16), dtype=st.sampled_from(["bfloat16", "float32"]))
@settings(max_examples=30, deadline=None)
def test_another_order_of_rounding_is_no_damage(seed, dtype):
    """Other tools add in another order, or round twice."""
    import torch

    kind = getattr(torch, dtype)
    _, expected = weights(seed, times=1, original=0, dtype=dtype)
    parts = expected.parts()
    assert explain(parts.base.to(kind) + parts.delta.to(kind), expected) is None


def test_another_weight_is_just_that():
    _, expected = weights(0, times=1, original=0, dtype="float32")
    assert explain(drawn(9), expected) == "is another weight (relative distance about 1)"
    assert explain(drawn(9), Expected(drawn(8))) == "is another weight (relative distance about 1)"


@pytest.mark.parametrize(
    ("elements", "exact", "told"), [(1, True, True), (1, False, False), (40, True, False)]
)
def test_rounding_in_few_elements_is_damage_only_where_files_were_changed(elements, exact, told):
    import torch

    found, expected = weights(0, times=1, original=0, dtype="bfloat16")
    flat = found.view(-1).view(torch.int16)
    flat[:elements] ^= 1  # the last bit of the mantissa
    assert (explain(found, expected, exact=exact) is not None) == told


def test_integers_and_single_numbers():
    import torch

    ones = torch.ones(3, dtype=torch.int64)
    assert explain(ones, Expected(ones.clone())) is None
    assert explain(ones, Expected(ones + 1)) == "holds other numbers"
    assert "1 of 1 elements" in explain(torch.tensor(2.0), Expected(torch.tensor(1.0)))


def test_a_copy_of_a_whole_model_has_no_cause_and_a_damaged_one_has(qlora, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    whole = ArmPath("a", "merged", qlora / "trained")
    assert diagnose(whole, whole, "auto").causes == ()
    folder = shutil.copytree(qlora / "trained", tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][7] = 5.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    [cause] = diagnose(whole, ArmPath("b", "merged", folder), "auto").causes
    assert cause.startswith(
        "model.norm: 1 of 64 elements are not what was written, the first at [7]: 5 in place"
    )


@pytest.mark.parametrize("bare", ["reference", "candidate"])
def test_names_without_the_models_first_one_and_lost_buffers_are_no_damage(qlora, tmp_path, bare):
    """As GPT-2's files on the Hub are, and as transformers writes them again; with masks of the layers."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    paths = {name: shutil.copytree(qlora / "trained", tmp_path / name) for name in ("reference", "candidate")}
    file = paths[bare] / "model.safetensors"
    renamed = {name.removeprefix("model."): tensor for name, tensor in load_file(file).items()}
    save_file(renamed, file, metadata={"format": "pt"})
    reference = paths["reference"] / "model.safetensors"
    extra = load_file(reference) | {"layers.0.rotary_emb.inv_freq": torch.ones(8)}
    save_file(extra, reference, metadata={"format": "pt"})

    def found():
        return diagnose(*(ArmPath(name, "merged", path) for name, path in paths.items()), "auto")

    assert found().tensors == ()
    assert found().others[-1] == "layers.0.rotary_emb.inv_freq: missing in the candidate"
    candidate = paths["candidate"] / "model.safetensors"
    tensors = load_file(candidate)
    next(tensor for name, tensor in tensors.items() if name.endswith("norm.weight"))[3] = 9.0
    save_file(tensors, candidate, metadata={"format": "pt"})
    [line] = found().tensors
    assert "1 of 64 elements are not what was written, the first at [3]" in line


def test_the_older_words_of_a_configuration_are_no_cause(qlora, tmp_path):
    import json
    import shutil

    from lora_eval.models.legacy import legacy_positions

    folder = shutil.copytree(qlora / "trained", tmp_path / "tgi")
    config = legacy_positions(json.loads((folder / "config.json").read_text()))
    assert "rope_theta" in config

    def causes(**changed):
        (folder / "config.json").write_text(json.dumps(config | changed))
        arms = ArmPath("a", "adapter", qlora / "adapter", base=qlora / "base"), ArmPath("b", "merged", folder)
        return diagnose(*arms, "auto").causes

    assert causes() == ()
    assert causes(rope_theta=5.0) == ("config.json: rope_theta is 5.0, the reference's is 10000.0",)


def test_an_adapter_that_cannot_be_merged_gives_no_cause_but_says_so(qlora, tmp_path):
    import json
    import shutil

    adapter = shutil.copytree(qlora / "adapter", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"some_new_option": True}))
    found = diagnose(
        ArmPath("a", "adapter", adapter, base=qlora / "base"),
        ArmPath("b", "merged", qlora / "trained"),
        "auto",
    )
    assert found.tensors == ()
    assert any(line.startswith("the tensors were not looked at: ") for line in found.causes)


def test_a_base_stored_wider_than_training_loaded_it(tmp_path):
    """The dequantized base has the values after both roundings, to the training's dtype and to 4 bits."""
    from lora_eval.export import export
    from lora_eval.models import read_lineage, write_lineage
    from tests.exporters.conftest import QLORA, save_qlora

    folder = save_qlora(tmp_path, dtype="float32")
    lineage = read_lineage(folder / "adapter")
    write_lineage(folder / "adapter", lineage.model_copy(update={"base_dtype": "bfloat16"}))
    export("base", base=folder / "base", adapter=folder / "adapter", out=folder / "out")
    candidate = ArmPath("b", "base", folder / "out")
    trained = ArmPath("a", "base", folder / "base", quantized_as=QLORA, loaded_as="bfloat16")
    assert diagnose(trained, candidate, "auto").causes == ()
    as_stored = ArmPath("a", "base", folder / "base", quantized_as=QLORA)
    assert any("model.embed_tokens" in line for line in diagnose(as_stored, candidate, "auto").tensors)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("times", "said"),
    [(2, "delta applied twice (or scaled by 2 times the trained scaling)"),
     (0.8, "scaling is 0.8 times the trained one")],
)  # fmt: skip
def test_the_cause_is_found_for_every_compute_dtype(tmp_path, compute, times, said):
    """The parts are those of the weight, whatever memory they were computed in (float32 is used as it is)."""
    import shutil

    from safetensors.torch import load_file, save_file

    from lora_eval.export import export
    from tests.exporters.conftest import QLORA, save_qlora

    folder = save_qlora(tmp_path, QLORA | {"bnb_4bit_compute_dtype": compute})
    export("merge", base=folder / "base", adapter=folder / "adapter", out=folder / "out")
    reference = ArmPath("a", "adapter", folder / "adapter", base=folder / "base")
    merged = ArmPath("b", "merged", folder / "out")
    assert diagnose(reference, merged, "auto").causes == ()
    wrong = shutil.copytree(folder / "out", folder / "wrong")
    tensors = load_file(wrong / "model.safetensors")
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    for name in [name for name in tensors if "_proj" in name]:
        a, b = (adapter[f"base_model.model.{name.replace('weight', f'lora_{part}.weight')}"] for part in "AB")
        tensors[name] = (tensors[name].float() + (times - 1) * 2 * (b.float() @ a.float())).bfloat16()
    save_file(tensors, wrong / "model.safetensors", metadata={"format": "pt"})
    [cause] = diagnose(reference, ArmPath("b", "merged", wrong), "auto").causes
    assert cause.endswith(f"(14 of 20 tensors): {said}")


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_the_dequantized_base_is_taken_apart_too(tmp_path, compute):
    """A quantized layer without an adapter: what is expected stays while causes are looked for."""
    import shutil

    from safetensors.torch import load_file, save_file

    from lora_eval.export import export
    from tests.exporters.conftest import QLORA, save_qlora

    quantization = QLORA | {"bnb_4bit_compute_dtype": compute}
    folder = save_qlora(tmp_path, quantization, dtype="float32")
    export("base", base=folder / "base", adapter=folder / "adapter", out=folder / "out")
    reference = ArmPath("a", "base", folder / "base", quantized_as=quantization)
    wrong = shutil.copytree(folder / "out", folder / "wrong")
    tensors = load_file(wrong / "model.safetensors")
    q, k = (f"model.layers.{n}.self_attn.q_proj.weight" for n in (0, 1))
    tensors[q], tensors[k] = tensors[k].clone(), tensors[q].clone()
    v = "model.layers.1.self_attn.v_proj.weight"
    tensors[v] = load_file(folder / "base" / "model.safetensors")[v]
    save_file(tensors, wrong / "model.safetensors", metadata={"format": "pt"})
    assert set(diagnose(reference, ArmPath("b", "base", wrong), "auto").tensors) == {
        f"{q.removesuffix('.weight')}: holds the weight of {k}",
        f"{k.removesuffix('.weight')}: holds the weight of {q}",
        f"{v.removesuffix('.weight')}: lies on the original 16-bit base, not on the quantized one that was "
        "trained",
    }
