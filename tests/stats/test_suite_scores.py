"""Macro averages: the tasks' own variances combined, and which tasks are averaged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from lora_eval.compare import compare_loaded
from lora_eval.records import VariancePart
from lora_eval.stats import macro_average, paired_binary, paired_scores
from lora_eval.stats.suite import TaskDifference, item_part
from tests.simulated import make_row, make_run, make_runs, make_suite


def task(name, estimate, runs=None):
    return TaskDifference(name, estimate.difference, item_part(estimate), runs or {})


def test_two_tasks_are_welchs_test():
    rng = np.random.default_rng(4)
    x, y = rng.normal(0.2, 1, 40), rng.normal(0.1, 3, 15)
    tasks = [task("x", paired_scores(0 * x, x)), task("y", paired_scores(0 * y, -y))]
    found = macro_average(("a", "b"), tasks)
    expected = scipy_stats.ttest_ind(x, y, equal_var=False)
    assert found.difference == pytest.approx((x.mean() - y.mean()) / 2, abs=1e-12)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-12)
    assert found.degrees_of_freedom == pytest.approx(expected.df, rel=1e-12)
    interval = expected.confidence_interval(0.95)
    assert (found.ci_low, found.ci_high) == pytest.approx((interval.low / 2, interval.high / 2), abs=1e-12)


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 200)), min_size=2, max_size=8)
)
def test_one_rate_more_narrows_the_mean(tables):
    estimates = [
        paired_binary([0] * w + [1] * lost + [1] * t, [1] * w + [0] * lost + [1] * t) for w, lost, t in tables
    ]
    tasks = [task(str(i), estimate) for i, estimate in enumerate(estimates)]
    found = macro_average(("a", "b"), tasks)
    assert found.difference == pytest.approx(np.mean([estimate.difference for estimate in estimates]))
    widest = max(t.items.variance for t in tasks) ** 0.5
    assert 0 < found.standard_error <= widest * (1 + 1e-12) / len(tasks) ** 0.5 + 1e-12
    assert found.ci_low < found.difference < found.ci_high
    mirrored = macro_average(("b", "a"), [TaskDifference(t.task, -t.difference, t.items, {}) for t in tasks])
    assert (mirrored.ci_low, mirrored.p_value) == pytest.approx((-found.ci_high, found.p_value))


def test_rates_on_which_nothing_changed_still_have_a_variance():
    same = paired_binary([1] * 100, [1] * 100)
    found = macro_average(("a", "b"), [task("x", same), task("y", same)])
    assert (found.difference, found.p_value) == (0, 1)
    assert found.ci_low < 0 < found.ci_high


def test_scores_on_which_nothing_changed_are_named():
    rng = np.random.default_rng(1)
    changed = paired_scores(rng.random(30), rng.random(30))
    found = macro_average(("a", "b"), [task("x", changed), task("y", paired_scores([0.5] * 9, [0.5] * 9))])
    assert found.difference == pytest.approx(changed.difference / 2)
    assert found.reason == "no item's score differs on y, which is taken as certain"
    nothing = macro_average(("a", "b"), [task("y", paired_scores([0.5] * 9, [0.5] * 9))] * 2)
    assert (nothing.difference, nothing.ci_low, nothing.p_value) == (0, None, None)


def test_training_runs_vary_together_over_all_tasks():
    """A run that is good on one task is good on the others: the parts must not be taken as independent."""
    rng = np.random.default_rng(2)
    centers = {"runs of b": [0.1, 0.2, 0.3]}
    tasks = [task(name, paired_scores(rng.random(50), rng.random(50)), centers) for name in "xyz"]
    found = macro_average(("a", "b"), tasks)
    items = sum(t.items.variance for t in tasks) / 9
    assert found.standard_error**2 == pytest.approx(items + 0.01 / 3, rel=1e-12)
    assert found.degrees_of_freedom is None
    assert found.method == "macro average of 3 tasks, t (Satterthwaite) and 3 training runs"
    assert VariancePart(source="runs of b", variance=0.01 / 3, degrees_of_freedom=2).variance < items + 0.01


def test_comparison_averages_shares_by_role_and_says_what_it_leaves_out():
    runs = make_runs(n=60)
    scores = compare_loaded(runs, suite=make_suite()).suite_scores
    assert [score.role for score in scores] == [None, "target", "guard"]
    every, target, guard = scores
    assert set(every.tasks) == set(target.tasks) | set(guard.tasks)
    assert every.left_out == {"story": "word_perplexity is no share from 0 to 1"}
    assert target.tasks == ("tickets", "terms")
    for score in scores:
        for pair in score.pairs:
            assert pair.difference == pytest.approx(score.means[pair.b] - score.means[pair.a], abs=1e-12)
    assert len(every.pairs) == 5
    assert every.pairs[0].ci_low > 0


def test_one_task_has_no_macro_average():
    rows = [[make_row("t", i, {"acc": float(i % 2)}) for i in range(9)] for _ in range(2)]
    runs = {name: make_run(name, own) for name, own in zip(("base", "tuned"), rows, strict=True)}
    assert compare_loaded(runs).suite_scores == ()


def test_a_task_without_a_test_is_left_out_with_its_reason():
    runs = make_runs(n=20, arms=("base", "adapter"))
    rows = [row for row in runs["adapter"].rows if row.task != "facts"]
    runs["adapter"] = make_run("adapter", rows)
    left_out = compare_loaded(runs, suite=make_suite()).suite_scores[0].left_out
    assert left_out["facts"] == "adapter against base: no item was answered by both arms"
