"""A merge takes training's own mean of the scales, and says of how many layers the values are training's."""

from __future__ import annotations

import json
import shutil

import pytest

from lora_eval.export import export
from lora_eval.models import load_base
from lora_eval.models.trained_base import TRAINED_BASE, observe, seen_in_training
from lora_eval.schema import write_record
from tests.exporters.conftest import QLORA


@pytest.fixture
def trained(qlora, tmp_path):
    """The adapter with what its base's layers hold, as a training run on this machine leaves it."""
    folder = shutil.copytree(qlora / "adapter", tmp_path / "adapter")
    model = load_base(qlora / "base", dtype="bfloat16", quantization=QLORA)
    write_record(folder / TRAINED_BASE, observe(model))
    return folder


def change(folder, **values):
    """Change the first layer's entry; returns its name."""
    data = json.loads((folder / TRAINED_BASE).read_text())
    name = next(iter(data["layers"]))
    data["layers"][name] |= values
    (folder / TRAINED_BASE).write_text(json.dumps(data))
    return name


def merge(qlora, adapter, out, **options):
    lineage = export("merge", base=qlora / "base", adapter=adapter, out=out, options=options)
    return json.loads((out / "audit.json").read_text()), lineage.steps[-1].arguments


def test_every_layer_is_as_in_training(qlora, trained, tmp_path):
    audit, arguments = merge(qlora, trained, tmp_path / "out")
    assert audit["as_trained"] == audit["quantized"] == arguments["layers_as_trained"] == 14
    assert not any("in training" in note for note in audit["notes"])
    same = (tmp_path / "out/model.safetensors").read_bytes()
    assert same == (qlora / "trained/model.safetensors").read_bytes()


def test_a_layer_that_held_something_else_is_named(qlora, trained, tmp_path):
    name = change(trained, checksum="0" * 32)
    audit, _ = merge(qlora, trained, tmp_path / "out")
    assert audit["as_trained"] == audit["quantized"] - 1
    assert any(f"1 of 14 quantized layers ({name} first)" in note for note in audit["notes"])


def test_the_mean_is_the_one_of_training(qlora, trained, tmp_path):
    """As if another device had summed the scales: only that layer differs from this machine's merge."""
    from safetensors.torch import load_file

    seen = seen_in_training(trained, QLORA)
    first = next(iter(seen.layers))
    name = change(trained, offset=seen.layers[first].offset * 1.01)
    audit, _ = merge(qlora, trained, tmp_path / "out")
    assert audit["as_trained"] == audit["quantized"] - 1
    found = load_file(tmp_path / "out/model.safetensors")
    here = load_file(qlora / "trained/model.safetensors")
    assert [key for key in here if not found[key].equal(here[key])] == [f"{name}.weight"]


def on_a_gpu(weight):
    """What a GPU's layer holds of bfloat16 weights under NF4 with double quantization, by the rules of
    bitsandbytes' csrc/kernels.cu; and the mean of its scales.
    """
    import torch
    from bitsandbytes import functional
    from bitsandbytes.backends.default import ops

    code, fine = ops._get_4bit_code("nf4", torch.device("cpu")), functional.create_dynamic_map().float()
    blocks = weight.float().view(-1, 64)
    largest = blocks.abs().amax(1)
    mean = largest.double().mean().float()  # another order of summing
    scales = []
    for group in (largest - mean).split(256):
        peak = group.abs().max()
        nearest = ((group * (1 / peak)).view(-1, 1) - fine).abs().argmin(1)
        scales.append(fine[nearest] * peak + mean)
    borders = (code[1:] + code[:-1]) / 2
    rank = torch.bucketize(blocks * (1 / largest.view(-1, 1)), borders)
    return (code[rank] * torch.cat(scales).view(-1, 1)).bfloat16().view(weight.shape), float(mean)


def test_a_merge_on_a_cpu_has_the_values_of_the_gpu_that_trained(qlora, trained, tmp_path):
    from safetensors.torch import load_file

    from lora_eval.models.trained_base import Checksum
    from lora_eval.records import TrainedBase, TrainedLayer

    stored = load_file(qlora / "base/model.safetensors")
    layers, expected = {}, {}
    for name in seen_in_training(trained, QLORA).layers:
        values, mean = on_a_gpu(stored[f"{name}.weight"])
        checksum = Checksum()
        checksum.add(values)
        layers[name] = TrainedLayer(checksum=str(checksum), offset=mean)
        expected[f"{name}.weight"] = values
    write_record(trained / TRAINED_BASE, TrainedBase(device="a GPU", dtype="bfloat16", layers=layers))
    audit, _ = merge(qlora, trained, tmp_path / "out")
    assert audit["as_trained"] == audit["quantized"] == 14
    export("base", base=qlora / "base", adapter=trained, out=tmp_path / "base")
    found = load_file(tmp_path / "base/model.safetensors")
    assert all(found[name].equal(values) for name, values in expected.items())
    here = load_file(qlora / "trained/model.safetensors")
    differing = [
        name for name in expected if not here[name].equal(load_file(tmp_path / "out/model.safetensors")[name])
    ]
    assert differing  # else this would pass by a CPU's rules


def test_another_quantization_than_trainings_is_not_compared(qlora, trained, tmp_path):
    for number, options in enumerate(({"quantize": "fp4"}, {"onto": "original"})):
        audit, _ = merge(qlora, trained, tmp_path / f"out{number}", **options)
        assert audit["as_trained"] is None


def test_the_base_alone_and_a_combination_are_compared_too(qlora, trained, tmp_path):
    lineage = export("base", base=qlora / "base", adapter=trained, out=tmp_path / "base")
    assert lineage.steps[-1].arguments["layers_as_trained"] == 14
    options = {"others": [str(trained)], "weights": [0.5, 0.5], "combine": "linear"}
    audit, _ = merge(qlora, trained, tmp_path / "both", **options)
    assert audit["as_trained"] == 14
    assert seen_in_training(tmp_path / "both/combined_adapter", QLORA) == seen_in_training(trained, QLORA)
    assert not (tmp_path / "both" / TRAINED_BASE).exists()
