"""Limits: parsed, derived from the floor, broken."""

from __future__ import annotations

import pytest

from lora_eval.errors import InputError
from lora_eval.records import Divergence
from lora_eval.verify.arithmetic import floor_dtype
from lora_eval.verify.tolerance import FACTOR, NEAR_FACTOR, from_floor, near, parse_tolerance


def divergence(mean=1e-4, top1=0.99, flips=0):
    return Divergence(tokens=1000, mean_kl=mean, p99_kl=10 * mean, max_kl=20 * mean, top1_agreement=top1,
                      items=20, item_flips=flips)  # fmt: skip


def test_limits_are_parsed():
    limits = {"kl_mean": 1e-3, "top1": 0.99, "flips": 0.0}
    assert parse_tolerance(["kl_mean=1e-3,top1=0.99", "flips=0"]) == limits
    assert parse_tolerance([]) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kl_men=1", "did you mean 'kl_mean'"),
        ("top1=high", "NUMBER"),
        ("top1", "NUMBER"),
        ("kl_max=-1", "least 0"),
        ("kl_max=nan", "least 0"),
    ],
)
def test_faulty_limits(text, said):
    with pytest.raises(InputError, match=said):
        parse_tolerance([text])


def test_a_model_at_the_floor_passes_and_one_far_above_fails():
    floor = divergence()
    tolerance = from_floor(floor, "words", {})
    assert tolerance.failures(floor) == ()
    assert tolerance.failures(divergence(mean=1e-4 * FACTOR)) == ()
    assert len(tolerance.failures(divergence(mean=1.01e-4 * FACTOR))) == 2
    assert tolerance.failures(divergence(top1=0.9)) == ("top1 is 0.9, at least 0.954 is allowed",)
    assert "noise floor: words" in tolerance.source


def test_without_noise_only_the_same_passes():
    floor = divergence(mean=0.0, top1=1.0)
    assert from_floor(floor, "", {}).failures(divergence(mean=0.0, top1=1.0)) == ()
    assert from_floor(floor, "", {}).failures(divergence(mean=1e-9, top1=1.0)) != ()


def test_limits_given_by_hand_replace_single_ones():
    tolerance = near(None, "", {"answer_kl": 1.0})
    assert tolerance.failures(divergence(mean=0.5)) == ()
    assert tolerance.failures(divergence(mean=0.5, flips=11)) == ("flips is 0.55, at most 0.5 is allowed",)
    assert near(None, "", {}).failures(divergence(mean=0.5)) == ("answer_kl is 0.5, at most 0.1 is allowed",)
    assert "given by hand: answer_kl=1" in tolerance.source


def test_a_quantized_model_is_measured_by_plain_rounding():
    rounded = divergence(mean=0.02)
    tolerance = near(rounded, "rounded to 4 bits", {})
    assert tolerance.failures(divergence(mean=0.02 * NEAR_FACTOR)) == ()
    broken = tolerance.failures(divergence(mean=0.021 * NEAR_FACTOR))
    assert len(broken) == 1 and broken[0].startswith("kl_mean is")
    assert "times the cost of rounded to 4 bits" in tolerance.source


def test_the_error_of_what_was_not_stored_counts_against_the_candidate():
    floor = divergence()
    edge = divergence(mean=1e-4 * FACTOR)
    assert from_floor(floor, "", {}).failures(edge.model_copy(update={"kl_error": 1e-6})) != ()


def test_what_is_not_finite_fails_whatever_the_limits():
    broken = divergence().model_copy(update={"broken_tokens": 3})
    assert near(None, "", {}).failures(broken) == ("logits are not finite at 3 of 1003 tokens",)


@pytest.mark.parametrize(
    ("reference", "candidate", "dtype"),
    [
        ("bfloat16", "bfloat16", "float32"),
        ("float32", "bfloat16", "bfloat16"),
        ("float32", "float32", "float64"),
        ("bfloat16", "float32", "float32"),
    ],
)
def test_the_floor_is_measured_in_another_arithmetic(reference, candidate, dtype):
    assert floor_dtype(reference, candidate) == dtype
