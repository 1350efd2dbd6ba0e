"""Bounds from the record alone: those of known one-sided tests, at any level, at every look."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from lora_eval.records import Look
from lora_eval.stats.binary import paired_binary
from lora_eval.stats.gate_bounds import gate_bounds
from lora_eval.stats.score_interval import score_interval
from lora_eval.stats.scores import cluster_mean
from lora_eval.stats.sequential import SequentialLaw
from tests.stats.gates import (
    LEVELS,
    arms_of,
    binary_line,
    check,
    counts,
    perplexity_line,
    score_line,
    scores,
)

# One-sided tests of the literature


@given(scores, st.floats(-0.5, 0.5), LEVELS)
def test_score_gate_is_the_one_sided_t_test(pairs, threshold, level):
    a, b = np.array(pairs).T
    difference = b - a
    assume(difference.std() > 1e-3)
    found = check(score_line(a, b), level, min_gain=threshold).verdict
    greater = scipy.stats.ttest_1samp(difference, threshold, alternative="greater").pvalue
    less = scipy.stats.ttest_1samp(difference, threshold, alternative="less").pvalue
    assume(min(abs(greater - (1 - level)), abs(less - (1 - level))) > 1e-6)
    expected = "PASS" if greater < 1 - level else "FAIL" if less < 1 - level else "INCONCLUSIVE"
    assert found == expected


@given(counts, LEVELS)
def test_binary_bounds_are_the_wider_of_posterior_and_score_test(numbers, level):
    wins, losses, ties = numbers
    found = gate_bounds(line := binary_line(*numbers), line.pairs[0], level)
    assert found.level == level
    draws = np.random.default_rng(0).dirichlet((wins + 0.5, losses + 0.5, ties + 1.0), 20_000)
    gains = draws[:, 0] - draws[:, 1]
    low, high = score_interval(*numbers, 2 * level - 1)
    assert found.low <= low and found.high >= high
    # P(gain <= bound) is the level, to what 20,000 draws show, or more where the score bound is wider.
    room = 5 * math.sqrt(level * (1 - level) / 20_000)
    for bound, score, below in (
        (found.high, high, gains <= found.high),
        (found.low, low, gains >= found.low),
    ):
        assert below.mean() >= level - room
        if abs(bound) < 1 and bound != score:
            assert abs(below.mean() - level) <= room


def test_cluster_bounds_keep_the_clusters():
    rng = np.random.default_rng(3)
    labels = [str(i // 4) for i in range(40)]
    a = rng.normal(size=40)
    b = a + np.repeat(rng.normal(0.1, 0.3, 10), 4)
    line = score_line(a, b, clusters=labels)
    found = gate_bounds(line, line.pairs[0], 0.95)
    error = cluster_mean(b - a, clusters=labels)
    expected = (b - a).mean() - scipy.stats.t.ppf(0.95, 9) * error.standard_error
    assert found.low == pytest.approx(expected, rel=1e-12)


@given(
    st.lists(st.tuples(st.floats(20, 90), st.floats(-3, 3), st.floats(5, 30)), min_size=3, max_size=30),
    LEVELS,
)
def test_ratio_bounds_are_the_t_bounds_of_the_log_ratio(documents, level):
    a, change, w = np.array(documents).T
    assume(np.ptp(change / w) > 1e-3)
    line = perplexity_line(a, a + change, w)
    found = gate_bounds(line, line.pairs[0], level, ratio=True)
    mean = cluster_mean(change / w, w)
    half = scipy.stats.t.ppf(level, len(w) - 1) * mean.standard_error
    assert found.low == pytest.approx(math.exp(mean.mean - half), rel=1e-9)
    assert found.high == pytest.approx(math.exp(mean.mean + half), rel=1e-9)
    # The same bounds on the scale of the perplexity, of which less is better.
    gain = gate_bounds(line, line.pairs[0], level)
    perplexity = math.exp(a.sum() / w.sum())
    assert gain.low == pytest.approx(perplexity * (1 - found.high), rel=1e-7, abs=1e-9 * perplexity)
    assert gain.high == pytest.approx(perplexity * (1 - found.low), rel=1e-7, abs=1e-9 * perplexity)


def test_bits_per_byte_are_bounded_on_their_own_scale():
    rng = np.random.default_rng(1)
    w = rng.uniform(5, 30, 25)
    a = rng.uniform(20, 90, 25)
    b = a + rng.normal(0.5, 1, 25)
    line = perplexity_line(a, b, w, metric="bits_per_byte")
    found = gate_bounds(line, line.pairs[0], 0.9)
    mean = cluster_mean((b - a) / w, w)
    half = scipy.stats.t.ppf(0.9, 24) * mean.standard_error
    assert found.low == pytest.approx(-(mean.mean + half) / math.log(2), rel=1e-9)
    assert found.high == pytest.approx(-(mean.mean - half) / math.log(2), rel=1e-9)


# Sequential comparisons


def looks_of(*numbers, total):
    """Looks with (wins, losses, ties) so far, of `total` items in all."""
    return tuple(
        Look(
            share=sum(seen) / total,
            n=sum(seen),
            higher=seen[0],
            lower=seen[1],
            ties=seen[2],
            bounded=True,
            p_value=paired_binary(*arms_of(*seen)).p_value,
        )
        for seen in numbers
    )


def sequential_line(*numbers, total):
    line = binary_line(*numbers[-1])
    looks = looks_of(*numbers, total=total)
    low, high = SequentialLaw(looks).interval(0.95)
    update = {"looks": looks, "ci_low": low, "ci_high": high}
    return line.model_copy(update={"pairs": (line.pairs[0].model_copy(update=update),)})


@given(counts, counts, LEVELS)
def test_bounds_of_a_sequential_pair_hold_at_every_look(first, more, level):
    last = tuple(a + b for a, b in zip(first, more, strict=True))
    line = sequential_line(first, last, total=2 * sum(last))
    found = check(line, level, min_gain=0)
    law = SequentialLaw(line.pairs[0].looks)
    low, high = law.interval(2 * level - 1)
    assert found.low <= low and found.high >= high
    # Wider only where the score test asks for it: at the nominal level of each look.
    nominal = law.spending.nominal(2 - 2 * level)
    ends = [score_interval(*seen, 1 - float(a)) for seen, a in zip((first, last), nominal, strict=True)]
    common = max(end[0] for end in ends), min(end[1] for end in ends)
    if common[0] <= common[1]:
        assert (found.low, found.high) == (min(low, common[0]), max(high, common[1]))


@given(counts, LEVELS)
def test_a_task_that_stopped_early_is_not_judged_as_if_it_had_been_planned_so(numbers, level):
    early = check(sequential_line(numbers, total=3 * sum(numbers)), level, min_gain=0)
    planned = check(binary_line(*numbers), level, min_gain=0)
    assert early.low <= planned.low
    assert early.high >= planned.high


# Intervals that cannot be made again


def test_an_interval_of_another_kind_is_used_as_it_stands():
    plain = binary_line(30, 10, 60)
    changed = {"ci_low": -0.05, "ci_high": 0.45, "method": "bootstrap (BCa)"}
    resampled = plain.model_copy(update={"pairs": (plain.pairs[0].model_copy(update=changed),)})
    assert check(plain, min_gain=0.05).verdict == "PASS"
    found = check(resampled, min_gain=0.05)
    assert (found.verdict, found.low, found.high, found.level) == ("INCONCLUSIVE", -0.05, 0.45, 0.975)


def test_an_interval_of_another_kind_at_too_low_a_level_decides_nothing():
    line = score_line(np.zeros(50), np.linspace(0.1, 0.3, 50))
    assert check(line, 0.99, min_gain=0.0).verdict == "PASS"
    update = {"variance_parts": (), "method": "bootstrap (BCa)"}
    other = line.model_copy(update={"pairs": (line.pairs[0].model_copy(update=update),)})
    assert check(other, 0.975, min_gain=0.0).verdict == "PASS"
    found = check(other, 0.99, min_gain=0.0)
    assert (found.verdict, found.low) == ("INCONCLUSIVE", None)
    assert "cannot be made again at 99 %" in found.reasons[0]


def test_no_interval_decides_nothing_and_says_why():
    equal = check(score_line(np.ones(30), np.ones(30)), max_drop=0.5)
    assert equal.verdict == "INCONCLUSIVE"
    assert equal.reasons == ("no item's score differs, so the spread is unknown",)
