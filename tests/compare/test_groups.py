"""Groups: one task over all their items, or a mean of their tasks; questions that several tasks ask."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats as scipy_stats

from lora_eval.compare import compare_loaded
from lora_eval.errors import InputError
from lora_eval.records import EvalSuite, TaskEntry, TaskResult
from lora_eval.stats import law_of
from tests.simulated import figures, make_row, make_run


def suite_of(*tasks) -> EvalSuite:
    return EvalSuite(name="s", version="1", tasks=tasks)


def test_a_group_is_tested_as_one_task():
    rows = {
        arm: [
            make_row(f"mmlu_{subject}", i, {"acc": float((i + shift) % 3 > 0)})
            for subject in ("law", "physics")
            for i in range(30)
        ]
        for arm, shift in (("base", 0), ("tuned", 1))
    }
    group = (TaskResult(task="mmlu", metric="acc", filter="none", higher_is_better=True, value=2 / 3, n=60),)
    runs = {arm: make_run(arm, own, results=figures(own) + group) for arm, own in rows.items()}
    suite = suite_of(TaskEntry(task="mmlu", metric="acc,none", role="guard"))
    found = compare_loaded(runs, suite=suite)
    assert [(task.task, task.primary, task.n) for task in found.tasks] == [
        ("mmlu", True, 60),
        ("mmlu_law", False, 30),
        ("mmlu_physics", False, 30),
    ]
    assert found.tasks[0].means == {"base": 2 / 3, "tuned": 2 / 3}
    named = compare_loaded(runs, groups={"all": ["mmlu_law", "mmlu_physics"]})
    assert named.tasks[0].task == "all"
    assert named.tasks[0].means["base"] == pytest.approx(2 / 3)


def shared_questions(metric="acc", figure=None):
    """Ten questions in `q_hard`, the same ten and twenty more in `q_main`: one cluster for each question.

    `figure` makes the group's own figure of each arm from the means of its tasks; None: over all items.
    """
    runs = {}
    for arm, move in (("base", 0), ("tuned", 1)):
        rows = [
            make_row(task, i, {metric: value(i, move)}, cluster=f"question {i}")
            for task, size, value in (
                ("q_hard", 10, lambda i, move: float((i * i + move) % 3 > 0)),
                ("q_main", 30, lambda i, move: float((i * i + move + i // 9) % 3 > 0)),
            )
            for i in range(size)
        ]
        runs[arm] = make_run(arm, rows)
        if figure is not None:
            own = figure([result.value for result in runs[arm].run.results])
            group = TaskResult(task="q", metric=metric, filter="none", higher_is_better=True, value=own, n=40)
            runs[arm] = make_run(arm, rows, results=(*runs[arm].run.results, group))
    return runs


def test_a_question_that_two_tasks_of_a_group_ask_is_one_cluster():
    """GPQA's diamond is a part of its main set, and both are tasks of `leaderboard_gpqa`."""
    runs = shared_questions()
    group, *tasks = compare_loaded(runs, suite=suite_of(TaskEntry(task="q"))).tasks
    assert [task.task for task in tasks] == ["q_hard", "q_main"]
    assert [task.pairs[0].clusters for task in (group, *tasks)] == [30, None, None]
    sums = dict.fromkeys(range(30), 0.0)
    for one, two in zip(runs["base"].rows, runs["tuned"].rows, strict=True):
        sums[one.item_id] += two.metrics["acc"] - one.metrics["acc"]
    changed = np.array([value for value in sums.values() if value])
    found = scipy_stats.permutation_test(
        (changed,), lambda x, axis: x.sum(axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=np.inf,
    )  # fmt: skip
    assert group.pairs[0].p_value == pytest.approx(found.pvalue, abs=1e-12)


def test_a_mean_over_tasks_that_share_questions_takes_the_questions_as_units():
    runs = shared_questions(figure=np.mean)
    pair = compare_loaded(runs, suite=suite_of(TaskEntry(task="q"))).tasks[0].pairs[0]
    rows = list(zip(runs["base"].rows, runs["tuned"].rows, strict=True))
    change = np.array([two.metrics["acc"] - one.metrics["acc"] for one, two in rows])
    tasks = np.array([[one.task == name for name in ("q_hard", "q_main")] for one, _ in rows], dtype=float)
    groups = np.array([one.item_id for one, _ in rows])
    fit = sm.OLS(change, tasks).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    # statsmodels counts the two means as fitted: (n - 1) / (n - 2).
    variance = np.full(2, 0.5) @ fit.cov_params() @ np.full(2, 0.5) * 38 / 39
    assert pair.method == "macro average of 2 tasks, cluster-robust t (30 clusters)"
    assert (pair.clusters, pair.degrees_of_freedom) == (30, 29)
    assert pair.difference == pytest.approx(fit.params.mean(), abs=1e-12)
    assert pair.standard_error == pytest.approx(variance**0.5, rel=1e-12)
    half = scipy_stats.t.ppf(0.975, 29) * variance**0.5
    assert pair.ci_high == pytest.approx(pair.difference + half, abs=1e-12)
    assert law_of(pair, higher_is_better=True).interval(0.95) == pytest.approx((pair.ci_low, pair.ci_high))


def unweighted_group(*, shift=0):
    """A group of two tasks, 10 and 50 items, whose figure is the mean of the two."""
    rows = {
        arm: [
            make_row(f"blimp_{name}", i, {"acc": float((i * i + move) % 3 > 0)})
            for name, size in (("adjunct", 10), ("anaphor", 50))
            for i in range(size)
        ]
        for arm, move in (("base", 0), ("tuned", shift))
    }
    runs = {}
    for arm, own in rows.items():
        means = [result.value for result in figures(own)]
        group = TaskResult(
            task="blimp", metric="acc", filter="none", higher_is_better=True, value=sum(means) / 2, n=60
        )
        runs[arm] = make_run(arm, own, results=(*figures(own), group))
    return runs


def test_a_group_that_is_a_mean_of_its_tasks_is_tested_as_such():
    found = compare_loaded(unweighted_group(shift=1), suite=suite_of(TaskEntry(task="blimp")))
    group, *tasks = found.tasks
    pair = group.pairs[0]
    assert pair.method == "macro average of 2 tasks, t (Satterthwaite)"
    assert pair.difference == pytest.approx(sum(task.pairs[0].difference for task in tasks) / 2)
    assert pair.difference == pytest.approx(group.means["tuned"] - group.means["base"])
    assert pair.ci_low < pair.difference < pair.ci_high
    assert pair.wins + pair.losses + pair.ties == pair.n == 60
    with pytest.raises(InputError, match=r"task blimp: .* is a mean of tasks"):
        compare_loaded(unweighted_group(shift=1), suite=suite_of(TaskEntry(task="blimp")), method="bootstrap")


def test_a_task_whose_spread_is_unknown_leaves_its_mean_without_an_interval():
    """All its scores differ by the same amount: that is no certainty, and no zero either."""
    runs = {}
    for arm, move in (("base", 0.0), ("tuned", 0.125)):
        rows = [make_row("g_a", i, {"f1": 0.25 + move}) for i in range(8)]
        rows += [make_row("g_b", i, {"f1": (i % 3) / 4 * (1 + move)}) for i in range(24)]
        means = [result.value for result in figures(rows)]
        group = TaskResult(
            task="g", metric="f1", filter="none", higher_is_better=True, value=sum(means) / 2, n=32
        )
        runs[arm] = make_run(arm, rows, results=(*figures(rows), group))
    pair = compare_loaded(runs, suite=suite_of(TaskEntry(task="g"))).tasks[0].pairs[0]
    assert (pair.ci_low, pair.p_value, pair.verdict) == (None, None, "inconclusive")
    assert pair.reason.startswith("g_a: every item's score differs by the same amount")


def test_tasks_of_a_group_are_explored_with_their_own_correction():
    group, *tasks = compare_loaded(unweighted_group(shift=1), suite=suite_of(TaskEntry(task="blimp"))).tasks
    p_values = [task.pairs[0].p_value for task in tasks]
    expected = scipy_stats.false_discovery_control(p_values)
    assert [task.pairs[0].p_bh for task in tasks] == pytest.approx(list(expected))
    assert [task.pairs[0].p_adjusted for task in tasks] == [None, None]
    assert group.pairs[0].p_bh == group.pairs[0].p_value
