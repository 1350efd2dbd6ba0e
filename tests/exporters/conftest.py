"""A tiny 16-bit base, an adapter trained on it under NF4 (by its lineage), and its merges."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_eval.models.quiet import without_gptqmodel
from tests.conftest import save_tiny_adapter, save_tiny_llama

QLORA = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}


def save_base(folder: Path, dtype: str = "bfloat16") -> None:
    """Write the tiny Llama in that dtype."""
    import torch
    from transformers import AutoModelForCausalLM

    save_tiny_llama(folder)
    if dtype != "float32":
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        model.save_pretrained(folder)


def save_qlora(folder: Path, quantization: dict[str, object] | None = None, dtype: str = "bfloat16") -> Path:
    """Write `base` and `adapter` (with lineage) into the folder."""
    from lora_eval.fingerprint import fingerprint_folder
    from lora_eval.models import write_lineage
    from lora_eval.records import Lineage, Variant

    save_base(folder / "base", dtype)
    with without_gptqmodel():
        save_tiny_adapter(folder / "base", folder / "adapter")
    base = Variant(kind="base", path="base", fingerprint=fingerprint_folder(folder / "base"))
    given = fingerprint_folder(folder / "adapter")
    adapter = Variant(kind="adapter", path="adapter", fingerprint=given, parent=base.fingerprint)
    lineage = Lineage(variants=(base, adapter), quantization=quantization or QLORA, base_dtype=dtype)
    write_lineage(folder / "adapter", lineage)
    return folder


@pytest.fixture(scope="session")
def qlora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, `adapter` (NF4 by its lineage) and the merges `trained` and `original`."""
    from lora_eval.export import export

    folder = save_qlora(tmp_path_factory.mktemp("qlora"))
    for onto in ("trained", "original"):
        export(
            "merge",
            base=folder / "base",
            adapter=folder / "adapter",
            out=folder / onto,
            options={"onto": onto},
        )
    return folder


@pytest.fixture(scope="session")
def chats(tmp_path_factory):
    """Forty conversations of two turns, as a file of JSON lines."""
    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    rows = [
        [
            {"role": "user", "content": f"Where is item {n}?"},
            {"role": "assistant", "content": f"In room {n * 7}."},
        ]
        for n in range(40)
    ]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return path
