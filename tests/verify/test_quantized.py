"""A GPTQ model is held against plain rounding to its own bits: the honest one passes, a damaged one fails."""

from __future__ import annotations

import json
import shutil

import pytest

from lora_eval.export import export
from lora_eval.exporters.gptq import require_gptqmodel
from lora_eval.verify import ArmPath, Options, verify

# Loading a GPTQ model makes gptqmodel create a temporary folder, which it leaves to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
LIMITS = {
    "answer_kl": 10.0,
    "flips": 1.0,
}  # random weights are no use to anybody at 4 bits: the factor counts


@pytest.fixture(scope="module")
def quantized(qlora, prompts, tmp_path_factory):
    try:
        require_gptqmodel()
    except Exception as error:
        pytest.skip(str(error))
    out = tmp_path_factory.mktemp("quantized") / "gptq"
    options = {"calibration": prompts, "samples": 24, "group_size": 32}
    export("gptq", base=qlora / "trained", adapter=None, out=out, options=options)
    return out


def check(reference, folder, prompts):
    return verify(
        reference, ArmPath("shipped", "gptq", folder), prompts, options=Options(samples=12, tolerance=LIMITS)
    )


def test_an_honest_quantization_passes_and_a_damaged_one_fails(qlora, adapter, quantized, prompts, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    whole = ArmPath("merged", "merged", qlora / "trained")
    for reference in (whole, adapter):
        record = check(reference, quantized, prompts)
        assert record.passed, record.failures
        assert record.floor_source.endswith("rounded to the nearest value (4 bits, groups of 32, symmetric)")
        assert 0 < record.measured.mean_kl < record.floor.mean_kl
        assert record.factor_reason

    folder = shutil.copytree(quantized, tmp_path / "damaged")
    (folder / "lineage.json").unlink()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][:8] = 0
    for name in [name for name in tensors if name.endswith("o_proj.scales")]:
        tensors[name] = (tensors[name] * 4).to(torch.float16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    record = check(whole, folder, prompts)
    assert not record.passed
    assert record.failures[0].startswith("kl_mean is")
    assert any(cause.startswith("model.norm: 8 of 64 elements") for cause in record.causes)


def test_without_a_known_grid_only_the_answers_count(qlora, quantized, prompts, tmp_path):
    """A method that we do not know the grid of: no floor, said as such."""
    from lora_eval.verify.floors import find_floors
    from lora_eval.verify.tolerance import near

    folder = shutil.copytree(quantized, tmp_path / "unknown")
    config = json.loads((folder / "config.json").read_text())
    for key in ("bits", "group_size", "sym"):
        config["quantization_config"].pop(key, None)
    (folder / "config.json").write_text(json.dumps(config))

    class Asked:
        header = None

        def floor(self, name, words, change, *, alone=False):
            assert alone
            from lora_eval.records.verification import StoredFloor

            return StoredFloor(words=words, measured={})

    floor, others = find_floors(Asked(), ArmPath("x", "gptq", folder), "near")
    assert floor is None
    assert list(others) == ["the same arm, one sequence at a time"]
    assert set(near(None, "", {}).limits) == {"answer_kl", "flips"}


def test_the_floor_is_that_of_the_layers_which_are_quantized(qlora, prompts, tmp_path):
    """Two candidates on one grid, of which one leaves the MLPs as they are, have floors of their own."""
    from lora_eval.records.verification import StoredFloor
    from lora_eval.verify.floors import find_floors

    folders = {}
    for name, kept in (("all", ("self_attn", "mlp")), ("attention", ("self_attn",))):
        folder = shutil.copytree(qlora / "trained", tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}
        (folder / "config.json").write_text(json.dumps(config))
        rename(folder, lambda module, kept=kept: any(part in module for part in kept))
        folders[name] = folder

    class Asked:
        header, arm = None, None

        def floor(self, name, words, change, *, alone=False):
            return StoredFloor(words=name, measured={})

    names = {
        find_floors(Asked(), ArmPath("x", "gptq", folder), "near")[0].words for folder in folders.values()
    }
    assert len(names) == 2


def rename(folder, quantized):
    """Store the weights of those layers under the name that GPTQ gives to its integers."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "_proj" in name and quantized(name)]:
        tensors[name.replace(".weight", ".qweight")] = tensors.pop(name)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
