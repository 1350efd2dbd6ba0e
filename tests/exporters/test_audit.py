"""The audit counts how often a change was applied, on the values themselves."""

from __future__ import annotations

import pytest

from lora_eval.errors import CheckFailed
from lora_eval.exporters.audit import Sums, check_audit, piece_sums, tensor_audit
from lora_eval.records.export import MergeAudit


def audit_of(times, *, scale=0.1, dtype="bfloat16", ones=False, factors=None, pieces=1):
    import torch

    generator = torch.Generator().manual_seed(0)
    base = torch.ones(64, 64) if ones else torch.randn(64, 64, generator=generator).bfloat16().float()
    delta = torch.randn(64, 64, generator=generator) * scale
    unscaled = base + times * delta
    summed = unscaled if factors is None else unscaled * factors
    merged = summed.to(getattr(torch, dtype))
    total = Sums()
    for rows in torch.arange(64).chunk(pieces):
        total += piece_sums(
            base=base[rows], summed=summed[rows], merged=merged[rows], delta=delta[rows],
            unscaled=None if factors is None else unscaled[rows],
        )  # fmt: skip
    row = tensor_audit(total, quantized=False, tensor="w", module="m", rank=4, scaling=2.0)
    return MergeAudit(onto="trained", dtype=dtype, tensors=(row,), quantized=1, untouched=0)


def test_pieces_add_up_and_factors_of_dora_are_taken_out():
    whole, cut = audit_of(1).tensors[0], audit_of(1, pieces=5).tensors[0]
    assert cut.changed == whole.changed
    assert cut.kept == pytest.approx(whole.kept)
    assert cut.relative_change == pytest.approx(whole.relative_change)
    scaled = audit_of(2, factors=3.0).tensors[0]
    assert scaled.applied == 2
    assert scaled.kept == pytest.approx(1, abs=0.01)


def test_an_infinite_value_is_noticed():
    import torch

    base = torch.zeros(2, 2)
    for merged in (torch.tensor([[0.0, float("inf")], [0, 0]]), torch.tensor([[float("nan"), 0.0], [0, 0]])):
        assert not piece_sums(base=base, summed=base, merged=merged.half()).finite
    assert piece_sums(base=base, summed=base, merged=base.half()).finite


def test_a_negative_zero_that_becomes_positive_is_no_change():
    import torch

    base = -torch.zeros(2, 2)
    assert piece_sums(base=base, summed=base + 0.0, merged=(base + 0.0).bfloat16()).differing == 0


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


def test_a_layer_without_a_change_is_said():
    learned, never = audit_of(1), audit_of(1, scale=0)
    assert never.tensors[0].applied is None
    both = check_audit(learned.model_copy(update={"tensors": learned.tensors + never.tensors}))
    assert both.notes == ("the change is 0 in 1 of 2 layers: they are the base's",)


def test_a_change_that_float32_cannot_show_is_lost_and_not_left_out():
    """One layer that hardly learned must not stop a merge of others that did."""
    learned, hardly = audit_of(1), audit_of(1, scale=1e-10)
    assert hardly.tensors[0].applied is None
    both = check_audit(learned.model_copy(update={"tensors": learned.tensors + hardly.tensors}))
    assert "lost more than half of the change in 1 of 2 layers" in both.notes[0]
    for scale in (1e-10, 1e-7):  # the second still changes some of the elements
        with pytest.raises(CheckFailed, match=f"{scale} of its weight's norm, which float32 cannot hold"):
            check_audit(audit_of(1, scale=scale, dtype="float32"))


def test_a_merge_that_rounding_undoes_fails():
    with pytest.raises(CheckFailed, match="lost in rounding to bfloat16; use --dtype float32"):
        check_audit(audit_of(1, scale=1e-4, ones=True))
