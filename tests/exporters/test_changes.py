"""The arithmetic of a merge does not depend on the pieces it is done in, and counts what it adds."""

from __future__ import annotations

import pytest

from lora_eval.export import export
from lora_eval.records import MergeAudit
from lora_eval.schema import read_record
from tests.exporters.test_merge_variants import (
    HEADS,
    ROWS,
    VARIANTS,
    as_trained,
    assert_equal,
    bases,
    load,
    save_adapter,
)

__all__ = ["bases"]


@pytest.mark.parametrize(
    "variant",
    ["lora", "dora", "embedding-dora", "both", "tokens-under-head", "tokens-apart", "resized-saved"],
)
def test_the_merge_does_not_depend_on_its_pieces(bases, tmp_path, monkeypatch, variant):
    """The weights of tiny models are one piece; here they are many, of 16 rows."""
    from lora_eval.exporters import pieces

    options = dict(VARIANTS[variant][0])
    rows = ROWS if options.pop("resize", False) else None
    save_adapter(as_trained(bases, "tied", "nf4", rows=rows), tmp_path / "adapter", **options)
    audits = []
    for elements in (pieces._ELEMENTS, 64):
        monkeypatch.setattr(pieces, "_ELEMENTS", elements)
        out = tmp_path / str(elements)
        export("merge", base=bases[0] / "tied", adapter=tmp_path / "adapter", out=out,
               options={"dtype": "float32", "quantize": "nf4"})  # fmt: skip
        audits.append(read_record(out / "audit.json", MergeAudit))
    whole, cut = ([(row.module, row.how, row.applied, row.changed) for row in a.tensors] for a in audits)
    assert whole == cut
    assert_equal(*(load(audit).state_dict() for audit in (out, tmp_path / str(1 << 18))))


def test_trained_tokens_do_not_count_as_the_change_of_a_head(bases, tmp_path):
    """Rows that were set to twenty times the head's change are no second application of it."""
    from safetensors.torch import load_file, save_file

    options = {"trainable_token_indices": [3, 5], "target_modules": HEADS}
    save_adapter(as_trained(bases, "tied", "bf16"), tmp_path / "adapter", **options)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    a, b = (tensors[f"base_model.model.lm_head.lora_{part}.weight"] for part in "AB")
    rows = b[[3, 5]].clone()
    b.zero_()[[3, 5]] = rows
    tensors["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"] = 40 * rows @ a
    save_file(tensors, path)
    export("merge", base=bases[0] / "tied", adapter=tmp_path / "adapter", out=tmp_path / "out")
    audit = read_record(tmp_path / "out" / "audit.json", MergeAudit)
    assert {row.module: row.applied for row in audit.tensors}["lm_head"] == 1
