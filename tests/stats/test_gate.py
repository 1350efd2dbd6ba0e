"""The gate: verdicts follow from the bounds, and the whole gate from its checks."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lora_eval.errors import ControlFailed, InputError, RecordError
from lora_eval.records import Comparison
from lora_eval.schema import dump_record, parse_record
from lora_eval.stats.binary import paired_binary
from lora_eval.stats.gate import decide, judge_gate, overall
from tests.stats.gates import (
    LEVELS,
    LIMITS,
    binary_line,
    check,
    counts,
    gate,
    make_comparison,
    make_line,
    perplexity_line,
    score_line,
    scores,
)

# The verdict and its interval


@given(counts, st.floats(-1, 1), LEVELS)
def test_verdict_agrees_with_the_interval(numbers, threshold, level):
    found = check(binary_line(*numbers), level, min_gain=threshold)
    expected = "PASS" if found.low > threshold else "FAIL" if found.high < threshold else "INCONCLUSIVE"
    assert found.verdict == expected
    assert found.low <= found.estimate <= found.high


@given(counts, LIMITS, LEVELS)
def test_a_drop_is_a_negative_gain(numbers, limit, level):
    line = binary_line(*numbers)
    drop, gain = check(line, level, max_drop=limit), check(line, level, min_gain=-limit)
    named = {"condition", "limit"}
    assert drop.model_dump(exclude=named) == gain.model_dump(exclude=named)


@given(counts, st.floats(-0.5, 0.5), LEVELS)
def test_direction_of_the_metric_changes_nothing(numbers, threshold, level):
    wins, losses, ties = numbers
    more = check(binary_line(wins, losses, ties), level, min_gain=threshold)
    # Errors instead of right answers: b is better where its value is lower.
    less = check(binary_line(losses, wins, ties, higher_is_better=False), level, min_gain=threshold)
    assert more == less


@given(scores, st.floats(-0.5, 0.5), LEVELS)
def test_direction_of_a_score_changes_nothing(pairs, threshold, level):
    a, b = np.array(pairs).T
    assume((b - a).std() > 1e-3)
    more = check(score_line(a, b), level, min_gain=threshold)
    less = check(score_line(-a, -b, higher_is_better=False), level, min_gain=threshold)
    assert (less.verdict, less.low, less.high) == (more.verdict, more.low, more.high)


@given(counts, st.floats(-0.5, 0.5), LEVELS)
def test_exchanged_arms_exchange_pass_and_fail(numbers, threshold, level):
    wins, losses, ties = numbers
    mirrored = {"PASS": "FAIL", "FAIL": "PASS", "INCONCLUSIVE": "INCONCLUSIVE"}
    one = check(binary_line(wins, losses, ties), level, min_gain=threshold)
    other = check(binary_line(losses, wins, ties), level, min_gain=-threshold)
    assert other.verdict == mirrored[one.verdict]
    assert (other.low, other.high) == (-one.high, -one.low)


@given(counts, st.floats(-0.5, 0.5), st.floats(0, 0.5), LEVELS, LEVELS)
def test_a_harder_gate_never_passes_more(numbers, threshold, more, one, other):
    order = ["FAIL", "INCONCLUSIVE", "PASS"]
    line = binary_line(*numbers)
    easy = check(line, one, min_gain=threshold).verdict
    assert order.index(check(line, one, min_gain=threshold + more).verdict) <= order.index(easy)
    low, high = sorted((one, other))
    strict = check(line, high, min_gain=threshold).verdict
    assert strict in (check(line, low, min_gain=threshold).verdict, "INCONCLUSIVE")


@given(st.floats(0.5, 2), LEVELS)
def test_ratio_limits_mirror_with_the_arms(limit, level):
    rng = np.random.default_rng(5)
    a, w = rng.uniform(20, 90, 20), rng.uniform(5, 30, 20)
    b = a + rng.normal(0, 2, 20)
    one = check(perplexity_line(a, b, w), level, max_perplexity_ratio=limit)
    other = check(perplexity_line(b, a, w), level, max_perplexity_ratio=1 / limit)
    mirrored = {"PASS": "FAIL", "FAIL": "PASS", "INCONCLUSIVE": "INCONCLUSIVE"}
    assert other.verdict == mirrored[one.verdict]


def test_ratio_below_its_limit_passes():
    rng = np.random.default_rng(6)
    a, w = rng.uniform(20, 90, 200), rng.uniform(5, 30, 200)
    line = perplexity_line(a, a + (math.log(1.02) + rng.normal(0, 0.02, 200)) * w, w)
    assert check(line, max_perplexity_ratio=1.05).verdict == "PASS"
    assert check(line, max_perplexity_ratio=1.01).verdict == "FAIL"
    assert check(line, max_perplexity_ratio=1.02).verdict == "INCONCLUSIVE"
    assert check(line, max_perplexity_ratio=1.05).measure == "ratio"


def test_threshold_on_the_bound_itself_decides_nothing():
    assert decide(0.1, 0.3, 0.1) == decide(0.1, 0.3, 0.3) == "INCONCLUSIVE"
    assert decide(None, None, 0.0) == "INCONCLUSIVE"
    assert (decide(0.1, None, 0.0), decide(None, -0.1, 0.0)) == ("PASS", "FAIL")


# Demands on the data


def test_too_few_items_take_a_pass_away_but_not_a_failure():
    gained, lost = binary_line(30, 5, 65), binary_line(5, 30, 65)
    assert check(gained, min_gain=0, min_n=100).verdict == "PASS"
    found = check(gained, min_gain=0, min_n=101)
    assert found.verdict == "INCONCLUSIVE"
    assert found.reasons[0] == "100 items have a value in both arms, min_n asks for 101"
    assert check(lost, min_gain=0, min_n=101).verdict == "FAIL"


def test_too_many_invalid_items_fail():
    line = binary_line(30, 5, 65, missing=25)
    assert check(line, min_gain=0, max_invalid=0.2).verdict == "PASS"
    found = check(line, min_gain=0, max_invalid=0.19)
    assert found.verdict == "FAIL"
    assert found.reasons[0].startswith("25 of 125 items (0.2) have no value")


def test_reasons_say_which_side_of_the_threshold():
    assert check(binary_line(30, 5, 65), min_gain=0).reasons == (
        "the gain is at least +0.1579 (95 %), above +0",
    )
    assert check(binary_line(5, 30, 65), max_drop=0.02).reasons == (
        "the gain is at most -0.1579 (95 %), below -0.02",
    )
    undecided = check(binary_line(12, 10, 78), max_drop=0.02)
    assert undecided.reasons[0].startswith("the gain lies between -0.0")
    assert undecided.n_needed > 100
    assert check(binary_line(5, 0, 7), min_gain=0).reasons[0].startswith("only 12 pairs")


@pytest.mark.slow
def test_n_needed_decides_with_power_80():
    rng = np.random.default_rng(11)
    need = check(binary_line(12, 10, 78), max_drop=0.02).n_needed
    passed = 0
    for _ in range(400):
        wins, losses, ties = rng.multinomial(need, (0.12, 0.10, 0.78))
        passed += check(binary_line(wins, losses, ties), max_drop=0.02).verdict == "PASS"
    assert 0.72 <= passed / 400 <= 0.88


# The whole gate


@given(st.lists(st.sampled_from(["PASS", "FAIL", "INCONCLUSIVE"]), min_size=1))
def test_overall(verdicts):
    found = overall(verdicts)
    assert (found == "FAIL") == ("FAIL" in verdicts)
    assert (found == "PASS") == (set(verdicts) == {"PASS"})


def test_nothing_checked_is_no_pass():
    assert overall([]) == "INCONCLUSIVE"


def test_gate_needs_nothing_but_the_stored_record():
    comparison = make_comparison(binary_line(30, 5, 65), binary_line(3, 5, 92, task="memory"))
    rules = gate({"task": "skill", "min_gain": 0.05}, {"task": "*", "max_drop": 0.2, "min_n": 50})
    found = judge_gate(comparison, rules)
    assert found.verdict == "PASS"
    assert [(c.rule, c.task, c.b) for c in found.checks] == [
        (0, "skill", "tuned"), (1, "skill", "tuned"), (1, "memory", "tuned"),
    ]  # fmt: skip
    stored = parse_record(json.loads(dump_record(comparison)), Comparison, "stored")
    assert judge_gate(stored, rules) == found
    assert parse_record(
        json.loads(dump_record(comparison.model_copy(update={"gate": found}))), Comparison, "s"
    ).gate == found  # fmt: skip


def test_failed_control_gives_no_verdict():
    broken = make_comparison(
        binary_line(30, 5, 65), controls={"determinism": {"items": 8, "differences": 1, "passed": False}}
    )
    with pytest.raises(ControlFailed, match="control 'determinism' did not pass"):
        judge_gate(broken, gate({"task": "*", "max_drop": 0.5}))


def test_missing_control_is_said():
    found = judge_gate(
        make_comparison(binary_line(30, 5, 65), controls={}), gate({"task": "*", "min_gain": 0})
    )
    assert "no control of the base against itself" in found.notes[0]


@given(st.integers(1, 5000), st.floats(0, 0.5))
def test_a_model_against_itself_never_passes_for_a_gain(n, threshold):
    assert check(binary_line(0, 0, n), min_gain=threshold).verdict != "PASS"
    assert check(score_line(np.ones(n), np.ones(n)), min_gain=threshold).verdict == "INCONCLUSIVE"


def test_a_comparison_without_arms_or_tasks_never_passes():
    rules = gate({"task": "*", "max_drop": 1})
    with pytest.raises(InputError, match="holds no arm"):
        judge_gate(make_comparison(arms=()), rules)
    with pytest.raises(RecordError, match="no task or group"):
        judge_gate(make_comparison(), rules)


def test_empty_comparison_never_passes():
    empty = make_line(paired_binary([], []))
    assert check(empty, max_drop=1.0).verdict == "INCONCLUSIVE"
