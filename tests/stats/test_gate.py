"""The gate: verdicts follow from the bounds, bounds from the record alone, and both from known tests."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from lora_eval.errors import ControlFailed, InputError, RecordError
from lora_eval.records import Arm, Comparison, Gate, GateRule, Look, Pair, TaskComparison, VariancePart
from lora_eval.schema import dump_record, parse_record
from lora_eval.stats.binary import paired_binary
from lora_eval.stats.gate import check_target, decide, judge_gate, overall
from lora_eval.stats.gate_bounds import gate_bounds
from lora_eval.stats.gate_rules import Target, check_names
from lora_eval.stats.likelihood import paired_likelihoods
from lora_eval.stats.score_interval import score_interval
from lora_eval.stats.scores import cluster_mean, paired_scores
from lora_eval.stats.sequential import SequentialLaw

LEVELS = st.sampled_from([0.6, 0.8, 0.9, 0.95, 0.975, 0.99, 0.999])
LIMITS = st.floats(0, 0.5).map(lambda x: round(x, 3))


def make_line(estimate, *, task="skill", metric="acc", higher_is_better=True, error=None, **changes):
    """A task's line with one pair, as `build_pair` fills it."""
    wins, losses = estimate.higher, estimate.lower
    if not higher_is_better:
        wins, losses = losses, wins
    values = {
        "a": "base", "b": "tuned", "n": estimate.n, "difference": estimate.difference,
        "ci_low": estimate.ci_low, "ci_high": estimate.ci_high, "level": estimate.level,
        "p_value": estimate.p_value, "p_adjusted": None, "method": estimate.method,
        "wins": wins, "losses": losses, "ties": estimate.ties, "mde": estimate.mde,
        "verdict": "inconclusive", "reason": estimate.reason, "ratio": estimate.ratio,
        "ratio_low": estimate.ratio_low, "ratio_high": estimate.ratio_high,
    }  # fmt: skip
    if error is not None and error.standard_error:
        part = VariancePart(
            source="items", variance=error.standard_error**2, degrees_of_freedom=error.clusters - 1
        )
        values |= {"variance_parts": (part,)}
    pair = Pair(**(values | changes))
    return TaskComparison(
        task=task,
        metric=metric,
        filter="none",
        higher_is_better=higher_is_better,
        n=estimate.n,
        means={},
        pairs=(pair,),
    )


def arms_of(wins, losses, ties):
    return np.repeat([0.0, 1.0, 1.0], [wins, losses, ties]), np.repeat([1.0, 0.0, 1.0], [wins, losses, ties])


def binary_line(wins, losses, ties, level=0.95, **options):
    return make_line(paired_binary(*arms_of(wins, losses, ties), level), **options)


def score_line(a, b, level=0.95, clusters=None, **options):
    a, b = np.asarray(a, float), np.asarray(b, float)
    error = cluster_mean(b - a, clusters=clusters)
    return make_line(paired_scores(a, b, clusters, level), error=error, **({"metric": "rouge1"} | options))


def perplexity_line(nll_a, nll_b, weights, level=0.95, metric="word_perplexity"):
    a, b, w = (np.asarray(x, float) for x in (nll_a, nll_b, weights))
    scale = "bits" if metric == "bits_per_byte" else "perplexity"
    error = cluster_mean((b - a) / w, w)
    estimate = paired_likelihoods(a, b, w, None, level, scale)
    return make_line(estimate, metric=metric, higher_is_better=False, error=error)


def check(line, level=0.95, **rule):
    return check_target(Target(0, GateRule(task="*", **rule), line, line.pairs[0]), level)


def make_comparison(*lines, controls=None, arms=("base", "tuned")):
    kinds = {"base": "base"}
    return Comparison(
        arms=tuple(
            Arm(name=name, kind=kinds.get(name, "adapter"), fingerprint=None, path=name) for name in arms
        ),
        suite={},
        tasks=lines,
        controls={"identity": {"items": 8, "passed": True}} if controls is None else controls,
    )


scores = st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=3, max_size=40)
counts = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 60)).filter(any)


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


def gate(*rules, level=0.95):
    return parse_record({"schema": 1, "level": level, "rules": list(rules)}, Gate, "gate.yaml")


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


# What a rule means


def arms_line(task, *, primary=True, metric="acc", filter_name="none"):
    line = binary_line(30, 5, 65, task=task, metric=metric)
    pair = line.pairs[0]
    pairs = [
        pair.model_copy(update={"a": a, "b": b})
        for a, b in (("base", "one"), ("base", "two"), ("base", "base-16bit"), ("one", "two"))
    ]
    return line.model_copy(update={"primary": primary, "pairs": tuple(pairs), "filter": filter_name})


@pytest.fixture
def many():
    lines = (
        arms_line("mmlu"),
        arms_line("mmlu_law", primary=False),
        arms_line("mmlu_art", primary=False),
        arms_line("gsm8k", metric="exact_match", filter_name="strict-match"),
        arms_line("gsm8k", metric="exact_match", filter_name="flexible-extract", primary=False),
    )
    made = make_comparison(*lines, arms=("base", "one", "two", "base-16bit"))
    kinds = {"base-16bit": "base"}
    arms = tuple(arm.model_copy(update={"kind": kinds.get(arm.name, arm.kind)}) for arm in made.arms)
    return made.model_copy(update={"arms": arms})


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"task": "mmlu"}, {"mmlu"}),
        ({"task": "mmlu*"}, {"mmlu"}),
        ({"task": "*"}, {"mmlu", "gsm8k strict-match"}),
        ({"task": "mmlu_*"}, {"mmlu_law", "mmlu_art"}),
        ({"task": "mmlu_law"}, {"mmlu_law"}),
        ({"task": "gsm8k", "metric": "exact_match"}, {"gsm8k strict-match"}),
        ({"task": "*", "metric": "exact_match,flexible-extract"}, {"gsm8k flexible-extract"}),
    ],
)
def test_tasks_of_a_rule(many, rule, expected):
    found = judge_gate(many, gate(rule | {"min_gain": 0}))
    assert {f"{c.task} {c.filter}".removesuffix(" none") for c in found.checks} == expected
    assert {(c.a, c.b) for c in found.checks} == {("base", "one"), ("base", "two")}


@pytest.mark.parametrize(
    ("arm", "expected"), [("two", {"two"}), ("t*", {"two"}), ("base-16bit", {"base-16bit"})]
)
def test_arms_of_a_rule(many, arm, expected):
    found = judge_gate(many, gate({"task": "*", "arm": arm, "min_gain": 0}))
    assert {c.b for c in found.checks} == expected
    assert {c.a for c in found.checks} == {"base"}


def test_rules_that_fit_nothing_are_told_at_once_with_the_known_names(many):
    rules = gate(
        {"task": "gsm8", "min_gain": 0},
        {"task": "mmlu", "metric": "ac", "min_gain": 0},
        {"task": "mmlu", "min_gain": 0},
        {"task": "mmlu", "arm": "won", "min_gain": 0},
        {"task": "*", "max_perplexity_ratio": 1.1},
    )
    with pytest.raises(RecordError) as caught:
        judge_gate(many, rules, "gate.yaml")
    assert str(caught.value).splitlines() == [
        "gate.yaml: rules[0].task: no task or group 'gsm8'; did you mean 'gsm8k'?; "
        "known: mmlu, mmlu_law, mmlu_art, gsm8k",
        "gate.yaml: rules[1].metric: no metric 'ac' of mmlu; did you mean 'acc'?; known: acc",
        "gate.yaml: rules[3].arm: no arm 'won' is compared with base; did you mean 'two'?; "
        "known: one, two, base-16bit",
        "gate.yaml: rules[4].max_perplexity_ratio: no perplexity of mmlu, mmlu_law, mmlu_art, gsm8k; "
        "metrics: acc, exact_match,strict-match, exact_match,flexible-extract",
    ]


def test_names_are_checked_before_anything_is_scored():
    rules = gate(
        {"task": "gsm8*", "min_gain": 0}, {"task": "mml", "arm": "two", "metric": "any", "min_gain": 0}
    )
    check_names(rules, ["gsm8k", "mml"], ["two"], "base", "gate.yaml")
    with pytest.raises(RecordError) as caught:
        check_names(rules, ["gsm8k", "mmlu"], ["one"], "base", "gate.yaml")
    assert len(caught.value.problems) == 2


def test_two_bases_can_be_compared_too():
    line = binary_line(30, 5, 65, b="base-16bit")
    made = make_comparison(line, arms=("base", "base-16bit"))
    arms = tuple(arm.model_copy(update={"kind": "base"}) for arm in made.arms)
    found = judge_gate(made.model_copy(update={"arms": arms}), gate({"task": "*", "min_gain": 0}))
    assert [check.b for check in found.checks] == ["base-16bit"]
