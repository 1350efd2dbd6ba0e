"""The probe takes rounding for rounding, and nothing more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import lora_eval
from lora_eval.engines.probe import _differs, find_mode
from lora_eval.export import export
from lora_eval.models import open_resident

POCKET = Path(lora_eval.__file__).parent / "pocket" / "model"


def test_a_base_as_training_saw_it_is_evaluated_by_our_attention(tmp_path):
    """Two right ways are 1.7e-5 nats apart there in float32; the model itself is 6.7e-5 from float64."""
    settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
                "bnb_4bit_compute_dtype": "float32"}  # fmt: skip
    (tmp_path / "nf4.json").write_text(json.dumps(settings))
    options = {"quantize": str(tmp_path / "nf4.json")}
    export("base", base=POCKET, adapter=None, out=tmp_path / "base", options=options)
    resident = open_resident(tmp_path / "base", dtype="float32")
    assert find_mode(resident, 512) == ("fused", None)


@pytest.mark.parametrize(("apart", "same"), [(1e-6, True), (3e-5, True), (6e-5, False), (1e-3, False)])
def test_differences_of_some_steps_of_float32_are_none(apart, same):
    expected, found = [torch.tensor([-0.5])], [torch.tensor([-0.5 - apart])]
    said = _differs(expected, found, None, 3.7e-5)  # 16 steps at a logit of 19.4
    assert (said is None) is same
