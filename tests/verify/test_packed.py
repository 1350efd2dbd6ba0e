"""GPTQ integers read as gptqmodel reads them, and what makes a rounded weight another one."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_eval.errors import VerificationFailed
from lora_eval.export import export
from lora_eval.exporters.gptq import require_gptqmodel
from lora_eval.models import load_base
from lora_eval.verify import ArmPath, Options, verify
from lora_eval.verify.arithmetic import Grid, round_to_nearest
from lora_eval.verify.diagnose import diagnose
from lora_eval.verify.expected import Expected, Parts, StoredTensors
from lora_eval.verify.explain import explain_rounded
from lora_eval.verify.packed import GptqTensors
from tests.verify.test_diagnose import drawn

# Loading a GPTQ model makes gptqmodel create a temporary folder, which it leaves to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
UP = "model.layers.1.mlp.up_proj"
GRIDS = st.builds(Grid, st.sampled_from([4, 8]), st.sampled_from([16, 32, -1]), st.booleans())


def gptq(model, prompts, out, **options):
    try:
        require_gptqmodel()
    except Exception as error:
        pytest.skip(str(error))
    options = {"calibration": prompts, "samples": 16, "group_size": 32} | options
    export("gptq", base=model, adapter=None, out=out, options=options)
    return out


@pytest.fixture(scope="module")
def quantized(qlora, prompts, tmp_path_factory):
    return gptq(qlora / "trained", prompts, tmp_path_factory.mktemp("quantized") / "gptq")


@pytest.fixture
def damaged(quantized, tmp_path):
    """`damaged(change)`: a copy without lineage, whose tensors `change` was given."""
    from safetensors.torch import load_file, save_file

    def make(change):
        folder = shutil.copytree(
            quantized, tmp_path / "damaged", ignore=shutil.ignore_patterns("lineage.json")
        )
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


def reader(folder):
    stored = StoredTensors(folder)
    return GptqTensors(stored, json.loads((folder / "config.json").read_text())["quantization_config"])


def causes(reference, folder):
    return diagnose(reference, ArmPath("b", "gptq", folder), "auto").causes


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"sym": False}, {"bits": 8, "desc_act": True}, {"bits": 8, "sym": False}]
)
def test_the_weight_is_that_of_the_layer_that_transformers_opens(qlora, prompts, tmp_path, options):
    import torch

    folder = gptq(qlora / "trained", prompts, tmp_path / "gptq", **options)
    model, packed = load_base(folder, device="cpu"), reader(folder)
    for module in (UP, "model.layers.0.self_attn.k_proj"):
        with torch.no_grad():
            opened = model.get_submodule(module)(torch.eye(64, dtype=torch.bfloat16)).T.float()
        assert packed.shape(module) == opened.shape
        # Its kernel computes in bfloat16, scale by scale: half a step of an integer is 4 to 60 times that.
        assert torch.allclose(packed.weight(module), opened, rtol=0, atol=2**-7 * float(opened.abs().max()))
    assert causes(ArmPath("a", "merged", qlora / "trained"), folder) == ()


@given(
    st.lists(st.integers(0, 15), min_size=16, max_size=16),
    st.lists(st.integers(0, 15), min_size=8, max_size=8),
)
@settings(max_examples=30, deadline=None)
def test_zero_points_that_borrow_from_each_other_are_read(column, points):
    """AutoGPTQ takes 1 off each zero point in the packed number: 0 becomes 15 and one less beside it."""
    import torch

    def pack(values):
        number = sum(value << (4 * place) for place, value in enumerate(values))
        return number - (1 << 32) if number >= 1 << 31 else number

    less = (pack(points) - 0x11111111) & 0xFFFFFFFF
    less = less - (1 << 32) if less >= 1 << 31 else less
    tensors = {
        "x.qweight": torch.tensor([[pack(column[:8])] * 8, [pack(column[8:])] * 8], dtype=torch.int32),
        "x.qzeros": torch.tensor([[less]], dtype=torch.int32),
        "x.scales": torch.full((1, 8), 0.5),
    }

    stored = SimpleNamespace(infos=tensors, read=tensors.__getitem__)
    found = GptqTensors(stored, {"quant_method": "gptq", "bits": 4, "group_size": 16, "sym": False})
    expected = 0.5 * (torch.tensor(column)[None].float() - torch.tensor(points)[:, None].float())
    assert torch.equal(found.weight("x"), expected)


@pytest.mark.parametrize(
    "config",
    [{"quant_method": "awq", "bits": 4}, {"quant_method": "gptq", "bits": 3}, {"quant_method": "gptq"}],
)
def test_another_layout_is_not_read(config):
    stored = SimpleNamespace(infos={"x.qweight": None})
    assert not GptqTensors(stored, config).holds("x")
    assert GptqTensors(stored, {"quant_method": "gptq", "bits": 4, "group_size": 32}).holds("x")


def rounded(seed, grid, *, times=1.0, original=0.0, size=1.0):
    """A weight with that much of the change, on that base, rounded to the grid; and what it should be."""
    import torch

    shape = (96, 64)
    base, delta, away = drawn(seed, 1.0, shape), drawn(seed + 1, 0.1, shape), drawn(seed + 2, 0.1, shape)
    parts = Parts(base, base + away, delta, None)
    found = round_to_nearest(size * (base + times * delta + original * away), grid)
    assert found.dtype == torch.float32
    return found, Expected(base + delta, lambda: parts)


@given(
    seed=st.integers(0, 2**16),
    grid=GRIDS,
    times=st.sampled_from([0.0, 0.5, 1.0, 2.0, 4.0]),
    original=st.sampled_from([0, 1]),
)
@settings(max_examples=60, deadline=None)
def test_both_shares_are_found_through_the_rounding(seed, grid, times, original):
    words = {
        0.0: "the adapter's change is not in it",
        0.5: "scaling is 0.5 times the trained one",
        1.0: None,
        2.0: "delta applied twice (or scaled by 2 times the trained scaling)",
        4.0: "scaling is 4 times the trained one",
    }
    base = "lies on the original 16-bit base, not on the quantized one that was trained" if original else None
    said = explain_rounded(*rounded(seed, grid, times=times, original=original), grid)
    assert said == ("; ".join(part for part in (base, words[times]) if part) or None)


@pytest.mark.parametrize("grid", [Grid(4, 32, True), Grid(8, -1, False)])
def test_what_is_no_rounding_is_told(grid):
    found, expected = rounded(0, grid)
    assert explain_rounded(found, Expected(expected.tensor), grid) is None
    other = explain_rounded(drawn(9, 1.0, (96, 64)), expected, grid)
    assert other.startswith("is another weight (relative distance about 1")
    assert explain_rounded(1.2 * found, expected, grid) == "is 1.2 times the weight that it should be"
    group = found.clone()
    group[5, 32:] *= 8
    assert "groups are not what was rounded, the first in row 5, columns" in explain_rounded(
        group, expected, grid
    )
    found[3, 3] = float("nan")
    assert explain_rounded(found, expected, grid) == "1 of 6144 elements are not finite"


def test_a_gptq_model_of_the_right_merge_is_known_as_such(qlora, adapter, quantized):
    for reference in (adapter, ArmPath("merged", "merged", qlora / "trained")):
        assert causes(reference, quantized) == ()


def test_two_quantized_models_are_to_be_equal(prompts, quantized, damaged):
    """Of two quantized arms none stands for the other: a copy is exactly that, and one integer is told."""
    reference = ArmPath("measured", "gptq", quantized)
    record = verify(reference, ArmPath("shipped", "gptq", quantized), prompts, options=Options(samples=4))
    assert (record.passed, record.expected, record.measured.max_kl) == (True, "equal", 0)

    def flip(tensors):
        tensors[f"{UP}.qweight"][0, 0] ^= 1 << 27

    shipped = ArmPath("shipped", "gptq", damaged(flip))
    record = verify(reference, shipped, prompts, options=Options(samples=4))
    assert not record.passed
    assert record.causes == (f"{UP}.qweight: holds other numbers",)


def test_a_gptq_model_of_the_wrong_merge_fails_though_its_answers_are_as_near(
    qlora, adapter, prompts, tmp_path
):
    folder = gptq(qlora / "original", prompts, tmp_path / "gptq")
    (folder / "lineage.json").unlink()
    found = causes(adapter, folder)
    assert found == (
        "model.layers.0.mlp.down_proj, model.layers.0.mlp.gate_proj, model.layers.0.mlp.up_proj and 11 more "
        "(14 of 20 tensors): lies on the original 16-bit base, not on the quantized one that was trained",
    )
    record = verify(adapter, ArmPath("shipped", "gptq", folder), prompts, options=Options(samples=4))
    assert record.causes == found


@pytest.mark.parametrize(
    "names", [("self_attn.q_proj", "self_attn.q_proj"), ("self_attn.k_proj", "self_attn.v_proj")]
)
def test_swapped_layers_are_named(adapter, damaged, names):
    one, two = (f"model.layers.{n}.{name}" for n, name in enumerate(names))

    def swap(tensors):
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            a, b = f"{one}.{part}", f"{two}.{part}"
            tensors[a], tensors[b] = tensors[b].clone(), tensors[a].clone()

    assert set(causes(adapter, damaged(swap))) == {
        f"{one}: holds the weight of {two}.weight",
        f"{two}: holds the weight of {one}.weight",
    }


def test_damage_that_changes_no_answer_fails_all_the_same(qlora, prompts, quantized, damaged):
    """Limits by hand ask for the answers alone; without them every tensor counts."""

    def scale(tensors):
        tensors[f"{UP}.scales"] = (1.3 * tensors[f"{UP}.scales"].float()).half()
        tensors["model.norm.weight"][3] *= 1.5

    folder = damaged(scale)
    reference = ArmPath("merged", "merged", qlora / "trained")
    shipped = ArmPath("shipped", "gptq", folder)
    record = verify(reference, shipped, prompts, options=Options(samples=8))
    assert f"{UP}: is 1.3 times the weight that it should be" in record.causes
    assert any(cause.startswith("model.norm: 1 of 64 elements") for cause in record.causes)
    loose = {"kl_mean": 100.0, "answer_kl": 100.0, "flips": 1.0}
    assert verify(reference, shipped, prompts, options=Options(samples=8, tolerance=loose)).passed


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (".layers.1.", "model.layers.1: missing in the candidate (9 tensors)"),
        (f"{UP}.scales", f"{UP}.scales: missing in the candidate"),
    ],
)
def test_missing_tensors_are_named(adapter, prompts, damaged, lost, said):
    """transformers leaves such memory as it finds it: opening may fail, or give any numbers."""
    folder = damaged(lambda tensors: [tensors.pop(name) for name in list(tensors) if lost in name])
    assert said in causes(adapter, folder)
    try:
        record = verify(adapter, ArmPath("shipped", "gptq", folder), prompts, options=Options(samples=4))
        assert not record.passed
        assert said in record.causes
    except VerificationFailed as error:
        assert said in str(error)
