"""The audit counts how often a change was applied, on the values themselves."""

from __future__ import annotations

import pytest

from lora_eval.errors import CheckFailed
from lora_eval.exporters.audit import audit_tensor, check_audit
from lora_eval.exporters.lora import Target
from lora_eval.records.export import MergeAudit


def audit_of(times, *, scale=0.1, dtype="bfloat16", ones=False):
    import torch

    generator = torch.Generator().manual_seed(0)
    base = torch.ones(64, 64) if ones else torch.randn(64, 64, generator=generator).bfloat16()
    delta = torch.randn(64, 64, generator=generator) * scale
    summed = base.float() + times * delta
    merged = summed.to(getattr(torch, dtype))
    row = audit_tensor(
        "w", Target("m", 4, 2.0), base=base, delta=delta, summed=summed, merged=merged, original=None
    )
    return MergeAudit(onto="trained", dtype=dtype, tensors=(row,), quantized=1, untouched=0)


@pytest.mark.parametrize("times", [0, 1, 2])
def test_zero_one_and_two_times_are_told_apart(times):
    audit = audit_of(times)
    assert audit.tensors[0].applied == times
    if times == 1:
        assert check_audit(audit).notes == ()
    else:
        with pytest.raises(CheckFailed, match=rf"m \({times} times\)"):
            check_audit(audit)


def test_a_change_that_rounding_loses_is_said():
    audit = check_audit(audit_of(1, scale=2e-4))
    assert audit.tensors[0].kept < 0.5
    assert "lost more than half" in audit.notes[0]
    assert check_audit(audit_of(1, scale=2e-4, dtype="float32")).notes == ()


def test_a_merge_that_rounding_undoes_fails():
    with pytest.raises(CheckFailed, match="lost in rounding to bfloat16; use --dtype float32"):
        check_audit(audit_of(1, scale=1e-4, ones=True))
