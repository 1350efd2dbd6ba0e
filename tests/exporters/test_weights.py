"""Streaming safetensors: what is written is what the library reads, and faults are named."""

from __future__ import annotations

import pytest

from lora_eval.errors import ModelError
from lora_eval.exporters.weights import TensorInfo, open_writer, read_header


def test_what_is_written_is_what_safetensors_reads(tmp_path):
    import torch
    from safetensors.torch import load_file

    tensors = {
        "a": torch.randn(3, 5).bfloat16(),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.zeros(0, 4),
        "mask": torch.tensor([True, False]),
        "transposed": torch.randn(4, 6).T,
    }
    codes = {"a": "BF16", "scalar": "I64", "empty": "F32", "mask": "BOOL", "transposed": "F32"}
    plan = {name: (TensorInfo(name, tuple(t.shape), codes[name]), codes[name]) for name, t in tensors.items()}
    path = tmp_path / "model.safetensors"
    with open_writer(path, plan) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert list(read_header(path)) == list(tensors)
    assert read_header(path)["a"] == TensorInfo("a", (3, 5), "BF16")


def test_a_shard_that_was_cut_short_is_named(tiny_llama, tmp_path):
    whole = (tiny_llama / "model.safetensors").read_bytes()
    path = tmp_path / "model.safetensors"
    for content in (whole[:-1], whole[:100], b"", b"not safetensors at all"):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"model\.safetensors: is"):
            read_header(path)


def test_pieces_come_in_any_order_and_from_several_threads(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from safetensors.torch import load_file

    tensors = {"a": torch.randn(40, 3), "b": torch.randn(64, 5)}
    plan = {name: (TensorInfo(name, tuple(t.shape), "F32"), "F32") for name, t in tensors.items()}
    path = tmp_path / "model.safetensors"
    with open_writer(path, plan) as writer, ThreadPoolExecutor(4) as pool:
        done = [
            pool.submit(writer.write, name, tensor[row : row + 8], row * tensor.shape[1])
            for name, tensor in reversed(tensors.items())
            for row in reversed(range(0, len(tensor), 8))
        ]
    assert [task.result() for task in done] == [None] * 13
    found = load_file(path)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_tensors_come_in_the_announced_form_and_none_is_left_out(tmp_path):
    import torch

    plan = {name: (TensorInfo(name, (2,), "F32"), "F32") for name in ("a", "b")}
    wrong = (("c", torch.zeros(2), 0), ("a", torch.zeros(3), 0), ("a", torch.zeros(2).half(), 0),
             ("a", torch.zeros(1), 2))  # fmt: skip
    for number, (name, tensor, first) in enumerate(wrong):
        with pytest.raises(ValueError, match="announced"), open_writer(tmp_path / f"{number}", plan) as w:
            w.write(name, tensor, first)
    with pytest.raises(ValueError, match="1 tensors announced"), open_writer(tmp_path / "short", plan) as w:
        w.write("a", torch.zeros(2))
        w.write("b", torch.zeros(1), 1)


def test_a_full_disk_is_heard(tmp_path, full_disk):
    import torch

    plan = {"a": (TensorInfo("a", (1 << 20,), "F32"), "F32")}
    full_disk(1 << 16)
    with pytest.raises(OSError, match="too large"), open_writer(tmp_path / "f", plan) as w:
        w.write("a", torch.zeros(1 << 20))
