"""What a rule means: its tasks, groups, metrics and arms; a rule that means nothing never passes."""

from __future__ import annotations

import pytest

from lora_eval.errors import RecordError
from lora_eval.stats.gate import judge_gate
from lora_eval.stats.gate_rules import check_names
from tests.stats.gates import binary_line, gate, make_comparison


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
