"""What a comparison can find, before it runs."""

from __future__ import annotations

import math

import pytest

from lora_eval.compare import compare_loaded
from lora_eval.records import Gate
from lora_eval.stats import judge, mcnemar_mde, mcnemar_n, paired_binary
from lora_eval.stats.plan import CHANGED, AskedTask, plan_comparison
from tests.simulated import make_runs, make_suite


def test_published_sample_sizes() -> None:
    """2 and 5 points at 10 % and 20 % changed items; one task needs no correction."""
    task = plan_comparison([AskedTask("t", 1000, "acc", None)]).tasks[0]
    needed = {(case.changed, way.difference): way.items for case in task.cases for way in case.needed}
    # The formula says 1960.2 and so on: a part of an item is a whole one.
    assert needed == {
        (changed, delta): pytest.approx(expected, abs=1)
        for (changed, delta), expected in {
            (0.1, 0.02): 1960, (0.1, 0.05): 312, (0.2, 0.02): 3923, (0.2, 0.05): 626,
        }.items()
    }  # fmt: skip


def test_detectable_is_what_the_needed_items_find() -> None:
    for items in (100, 1000, 20_000):
        case = plan_comparison([AskedTask("t", items, "acc", None)] * 5).tasks[0].cases[0]
        assert case.detectable == mcnemar_mde(items, 0.1 * items, 0.99)
        assert mcnemar_n(max(0.1, case.detectable), case.detectable, 0.99) == pytest.approx(items, rel=1e-6)


def test_more_tasks_need_more_items_and_a_margin_does_not() -> None:
    one, ten = (
        plan_comparison([AskedTask(f"t{i}", 500, "acc", 0.03 if i else None) for i in range(n)])
        for n in (1, 10)
    )
    assert (one.tests, ten.tests) == (1, 10)
    assert ten.tasks[0].cases[0].detectable > one.tasks[0].cases[0].detectable
    assert ten.tasks[0].cases[0].needed[0].items > one.tasks[0].cases[0].needed[0].items
    margin = ten.tasks[1].cases[0].needed
    assert [(way.difference, way.margin) for way in margin] == [(0.03, True)]
    assert margin[0].items == math.ceil(mcnemar_n(0.1, 0.03))


@pytest.mark.parametrize("margin", [0.02, 0.05])
def test_the_items_for_a_margin_are_those_that_hold_it(margin: float) -> None:
    """With as many wins as losses, so many items give a lower bound just above the margin half the time."""
    items = plan_comparison([AskedTask("t", 100, "acc", margin)]).tasks[0].cases[0].needed[0].items
    half = round(0.05 * items)
    values = [0] * half + [1] * half + [1] * (items - 2 * half)
    other = [1] * half + [0] * half + [1] * (items - 2 * half)
    held = judge(paired_binary(values, other), 1.0, higher_is_better=True, margin=margin)
    assert held.verdict == "not_worse"
    assert judge(paired_binary(values, other), 1.0, higher_is_better=True, margin=0.6 * margin).verdict != (
        "not_worse"
    )


def test_a_margin_that_no_share_can_have_is_not_planned_as_one() -> None:
    """A BLEU of 30 may lose 1.5: of right-or-wrong items that would be held by one item."""
    rules = [{"task": "t", "max_drop": 1.5}, {"task": "t", "min_gain": 2}]
    gate = Gate.model_validate({"schema": 1, "level": 0.95, "rules": rules})
    for case in plan_comparison([AskedTask("t", 500, "bleu", 1.5)], gate=gate).tasks[0].cases:
        assert case.needed == ()
        assert [(rule.passes_at, rule.items) for rule in case.rules] == [(None, None)] * 2


def test_a_perplexity_has_no_assumption() -> None:
    task = plan_comparison([AskedTask("t", 100, "word_perplexity", None)]).tasks[0]
    assert task.cases == ()
    assert "nothing is known of its spread" in task.reason


def test_an_earlier_comparison_goes_before_assumptions() -> None:
    earlier = compare_loaded(make_runs(), suite=make_suite())
    asked = [
        AskedTask("terms", 200, "acc", None),
        AskedTask("summaries", 800, "rouge1", 0.03),
        AskedTask("story", 200, "word_perplexity", None),
        AskedTask("facts", 200, "acc_norm", None),
        AskedTask("new", 200, "acc", None),
    ]
    plan = plan_comparison(asked, earlier=earlier)
    found = {task.task: task for task in plan.tasks}
    lines = {line.task: line for line in earlier.tasks if line.primary}
    widest = {
        name: max((p for p in lines[name].pairs if p.a == "base" and p.mde), key=lambda pair: pair.mde)
        for name in ("terms", "summaries", "story")
    }
    terms = found["terms"].cases[0]
    pair = widest["terms"]
    assert terms.source == "measured on 200 items"
    assert terms.changed == (pair.wins + pair.losses) / pair.n
    assert len(found["terms"].cases) == 1
    # Four times the items find half as much; five tests ask for more than one.
    summaries, story = found["summaries"].cases[0], found["story"].cases[0]
    assert summaries.changed is None
    assert summaries.detectable == pytest.approx(
        widest["summaries"].mde / 2 * (2.5758 + 0.8416) / 2.8016, rel=1e-4
    )
    assert story.detectable == pytest.approx(widest["story"].mde * (2.5758 + 0.8416) / 2.8016, rel=1e-4)
    assert story.needed == ()
    needed = summaries.needed[0]
    assert needed.margin
    assert needed.items == math.ceil(200 * (widest["summaries"].mde / 0.03) ** 2)
    # Another metric, and a task that was not there.
    assert [case.changed for case in found["facts"].cases] == list(CHANGED)
    assert [case.source for case in found["new"].cases] == ["assumed", "assumed"]


def test_what_the_rules_of_a_gate_need() -> None:
    rules = [
        {"task": "t*", "max_drop": 0.02, "min_n": 5000},
        {"task": "target", "min_gain": 0.05},
        {"task": "other", "metric": "f1,none", "max_drop": 0.1},
        {"task": "t*", "max_perplexity_ratio": 1.1},
    ]
    gate = Gate.model_validate({"schema": 1, "level": 0.95, "rules": rules})
    asked = [AskedTask("target", 1000, "acc", None), AskedTask("other", 1000, "acc", None)]
    plan = plan_comparison(asked, gate=gate)
    target = plan.tasks[0].cases[0].rules
    assert [(rule.rule, rule.condition, rule.threshold) for rule in target] == [
        (0, "max_drop", -0.02),
        (1, "min_gain", 0.05),
    ]
    at = mcnemar_mde(1000, 100, 0.9)  # a bound at 95 % on one side
    assert target[0].passes_at == pytest.approx(at - 0.02)
    assert target[1].passes_at == pytest.approx(at + 0.05)
    assert target[0].items == 5000 > mcnemar_n(0.1, 0.02, 0.9)
    assert target[1].items is None  # a gain that is not there is never shown
    assert plan.tasks[1].cases[0].rules == ()
