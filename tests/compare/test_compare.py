"""Runs in, verdicts out: pairing by item and prompt, the metric that counts, and what cannot be compared."""

from __future__ import annotations

import dataclasses
import math

import pytest
from scipy import stats as scipy_stats

from lora_eval.compare import compare_loaded, default_pairs
from lora_eval.errors import InputError
from lora_eval.records import EvalSuite, LoadedRun, TaskEntry, TaskResult
from tests.simulated import TASKS, make_row, make_run, make_runs, make_suite


@pytest.fixture(scope="module")
def comparison():
    return compare_loaded(make_runs(), suite=make_suite())


def lines(comparison, a, b):
    return {
        task.task: next(pair for pair in task.pairs if (pair.a, pair.b) == (a, b))
        for task in comparison.tasks
        if task.primary
    }


def two_runs(values_a, values_b, task="t", metric="acc", **changes):
    rows = [
        [make_row(task, i, {metric: v}, **changes) for i, v in enumerate(vs)] for vs in (values_a, values_b)
    ]
    return {"base": make_run("base", rows[0]), "tuned": make_run("tuned", rows[1])}


def suite_of(*tasks) -> EvalSuite:
    return EvalSuite(name="s", version="1", tasks=tasks)


def changed(loaded: LoadedRun, place: int, **changes) -> LoadedRun:
    rows = list(loaded.rows)
    rows[place] = dataclasses.replace(rows[place], **changes)
    return LoadedRun(loaded.run, rows)


def test_the_simulated_effects_are_found(comparison):
    found = {task: pair.verdict for task, pair in lines(comparison, "base", "adapter").items()}
    assert found["tickets"] == found["terms"] == "better"
    assert found["reading"] == found["story"] == "worse"
    assert found["facts"] == found["format"] == found["summaries"] == "not_worse"


def test_figures_are_those_of_the_harness(comparison):
    runs = make_runs()
    for task in comparison.tasks:
        for arm, value in task.means.items():
            results = runs[arm].run.results
            assert value == next(r.value for r in results if (r.task, r.metric) == (task.task, task.metric))
    for task in (task for task in comparison.tasks if task.task != "story"):
        for pair in task.pairs:
            assert pair.difference == pytest.approx(task.means[pair.b] - task.means[pair.a], abs=1e-12)


def test_each_kind_of_value_has_its_method(comparison):
    methods = {task: pair.method for task, pair in lines(comparison, "base", "adapter").items()}
    assert methods["tickets"] == "exact McNemar; Dirichlet(1/2) interval"
    assert methods["summaries"] == "paired t"
    assert methods["story"] == "weighted log ratio, paired t"


def test_perplexity_counts_documents_by_their_words(comparison):
    runs = make_runs()
    story = lines(comparison, "base", "adapter")["story"]
    means = next(task.means for task in comparison.tasks if task.task == "story")
    assert story.ratio == pytest.approx(means["adapter"] / means["base"], rel=1e-12)
    assert story.ratio_low < story.ratio < story.ratio_high
    assert story.difference == pytest.approx(means["adapter"] - means["base"], rel=1e-12)
    rows = [[row for row in runs[arm].rows if row.task == "story"] for arm in ("base", "adapter")]
    lower = sum(
        b.metrics["word_perplexity"] > a.metrics["word_perplexity"] for a, b in zip(*rows, strict=True)
    )
    assert (story.wins, story.losses) == (lower, 200 - lower)  # less perplexity is a win


def test_default_pairs_are_base_and_first_adapter():
    runs = make_runs(n=2)
    assert default_pairs(runs) == [
        ("base", "adapter"),
        ("base", "merged"),
        ("base", "gptq"),
        ("adapter", "merged"),
        ("adapter", "gptq"),
    ]
    assert default_pairs({name: runs[name] for name in ("adapter", "base")}) == [("base", "adapter")]


def test_an_identical_arm_differs_by_exactly_nothing(comparison):
    for task, pair in lines(comparison, "adapter", "merged").items():
        if task != "story":
            assert (pair.difference, pair.p_value, pair.wins, pair.losses) == (0, 1, 0, 0)
            assert pair.verdict == (
                "not_worse" if pair.margin and pair.ci_low is not None else "inconclusive"
            )


def test_holm_runs_over_the_primary_metrics_of_one_pair(comparison):
    found = lines(comparison, "base", "adapter")
    values = sorted(pair.p_value for pair in found.values())
    smallest = min(found.values(), key=lambda pair: pair.p_value)
    assert smallest.p_adjusted == pytest.approx(values[0] * len(TASKS))
    secondary = next(task for task in comparison.tasks if not task.primary)
    assert secondary.metric == "length"
    for pair in secondary.pairs:
        assert pair.p_adjusted is None
        assert pair.verdict == "inconclusive"
        assert "not judged" in pair.reason


def test_order_of_rows_does_not_matter():
    runs = make_runs(n=40)
    shuffled = {name: LoadedRun(run.run, run.rows[::-1]) for name, run in runs.items()}
    suite = make_suite()
    assert compare_loaded(shuffled, suite=suite).tasks == compare_loaded(runs, suite=suite).tasks


def test_swapping_arms_mirrors_every_line():
    runs = make_runs(n=60, arms=("base", "adapter"))
    there = compare_loaded(runs, suite=make_suite(), pairs=[("base", "adapter")])
    back = compare_loaded(runs, suite=make_suite(), pairs=[("adapter", "base")])
    mirrored = {"better": "worse", "worse": "better"}
    for one, other in zip(there.tasks, back.tasks, strict=True):
        a, b = one.pairs[0], other.pairs[0]
        assert (a.wins, a.losses, a.p_value) == (b.losses, b.wins, b.p_value)
        if a.ratio is None:
            assert (a.difference, a.ci_low) == (-b.difference, None if b.ci_high is None else -b.ci_high)
        else:
            assert math.log(a.ratio) == pytest.approx(-math.log(b.ratio), rel=1e-12)
        if a.verdict in mirrored:
            assert b.verdict == mirrored[a.verdict]


def test_right_or_wrong_items_in_clusters_are_tested_by_cluster():
    rows = [
        [make_row("t", i, {"acc": float(v)}, cluster=f"passage {i // 4}") for i, v in enumerate(values)]
        for values in ([0] * 20 + [1] * 20, [1] * 16 + [0] * 4 + [1] * 20)
    ]
    runs = {"base": make_run("base", rows[0]), "tuned": make_run("tuned", rows[1])}
    pair = compare_loaded(runs).tasks[0].pairs[0]
    assert pair.method.startswith("exact sign-flip by cluster")
    assert pair.p_value == 2 * 0.5**4  # four passages of one sign; sixteen items as if independent: 3e-5
    assert (pair.clusters, pair.verdict) == (10, "inconclusive")
    assert pair.effective_n <= 10  # all four items of a passage change together


def test_scores_in_clusters_take_the_robust_t():
    rows = [
        [make_row("t", i, {"f1": v / 8}, cluster=f"passage {i // 4}") for i, v in enumerate(values)]
        for values in ([0] * 20 + [4] * 20, [2] * 16 + [0] * 4 + [5] * 20)
    ]
    runs = {"base": make_run("base", rows[0]), "tuned": make_run("tuned", rows[1])}
    pair = compare_loaded(runs).tasks[0].pairs[0]
    assert pair.method == "cluster-robust t (10 clusters)"
    by_passage = [0.25] * 4 + [0.0] + [0.125] * 5
    assert pair.p_value == pytest.approx(scipy_stats.ttest_1samp(by_passage, 0).pvalue, rel=1e-12)
    assert (pair.clusters, pair.degrees_of_freedom) == (10, 9)


def test_repeats_of_an_item_are_one_cluster():
    rows = [
        [
            make_row("t", i, {"acc": float((i + r + arm) % 3 == 0)}, repeat=r)
            for i in range(12)
            for r in range(3)
        ]
        for arm in (0, 1)
    ]
    runs = {"base": make_run("base", rows[0]), "tuned": make_run("tuned", rows[1])}
    assert compare_loaded(runs).tasks[0].pairs[0].clusters == 12


def test_missing_and_valueless_items_are_counted():
    runs = two_runs([1, 0, 1, 1, None], [1, 1, 0, 1, 1])
    short = LoadedRun(runs["tuned"].run, runs["tuned"].rows[1:])
    task = compare_loaded({"base": runs["base"], "tuned": short}).tasks[0]
    assert (task.n, task.dropped_items) == (3, 2)
    assert (task.pairs[0].n, task.pairs[0].missing) == (3, 2)


def test_a_task_that_one_arm_lacks_has_a_reason():
    runs = make_runs(n=5, arms=("base", "adapter"))
    rows = [row for row in runs["adapter"].rows if row.task != "facts"]
    runs["adapter"] = LoadedRun(runs["adapter"].run, rows)
    facts = lines(compare_loaded(runs, suite=make_suite()), "base", "adapter")["facts"]
    assert (facts.n, facts.missing, facts.difference, facts.p_value) == (0, 5, None, None)
    assert "no item was answered by both arms" in facts.reason


def test_a_figure_that_is_no_mean_of_items_is_not_tested():
    runs = two_runs([0.2, 0.4], [0.3, 0.5], metric="bleu")
    results = (TaskResult(task="t", metric="bleu", filter="none", higher_is_better=True, value=31.0, n=2),)
    runs["base"] = LoadedRun(runs["base"].run.model_copy(update={"results": results}), runs["base"].rows)
    pair = compare_loaded(runs).tasks[0].pairs[0]
    assert pair.difference == pytest.approx(0.4 - 31.0)
    assert (pair.p_value, pair.ci_low, pair.verdict) == (None, None, "inconclusive")
    assert "whole task" in pair.reason


def test_margins_of_the_caller_go_before_the_suites():
    runs = make_runs(n=60, arms=("base", "adapter"))
    wide = compare_loaded(runs, suite=make_suite(), margins={"ordering": 0.5})
    assert lines(wide, "base", "adapter")["ordering"].margin == 0.5
    assert lines(wide, "base", "adapter")["ordering"].verdict == "not_worse"
    assert lines(wide, "base", "adapter")["format"].margin == 0.05


def test_without_a_suite_the_first_metric_counts():
    runs = make_runs(n=5, arms=("base", "adapter"))
    found = compare_loaded(runs)
    assert [task.metric for task in found.tasks if task.primary][:2] == ["exact_match", "acc"]
    assert {task.role for task in found.tasks} == {"other"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suite_fingerprint": "sha256:other"}, "suite fingerprint"),
        ({"seeds": {"task": 1}}, "seeds"),
        ({"limit": 5}, "limit"),
        ({"status": "partial"}, "not complete"),
    ],
)
def test_runs_that_cannot_be_paired_are_refused(change, message):
    runs = make_runs(n=3, arms=("base", "adapter"))
    header = runs["adapter"].run.model_copy(update=change)
    runs["adapter"] = LoadedRun(header, runs["adapter"].rows)
    with pytest.raises(InputError, match=f"arm adapter: .*{message}"):
        compare_loaded(runs)


def test_unequal_prompts_name_the_item():
    runs = make_runs(n=3, arms=("base", "adapter"))
    runs["adapter"] = changed(runs["adapter"], 4, prompt_sha256="0" * 64)
    with pytest.raises(InputError, match=r"task terms, item 1: the prompt differs between arm base"):
        compare_loaded(runs)


def test_an_item_that_stands_twice_is_refused():
    runs = make_runs(n=3, arms=("base", "adapter"))
    runs["base"] = LoadedRun(runs["base"].run, [*runs["base"].rows, runs["base"].rows[0]])
    with pytest.raises(InputError, match=r"task tickets, item 0 \(repeat 0\) stands twice"):
        compare_loaded(runs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": [("base", "adaptor")]}, "no arm 'adaptor'; did you mean 'adapter'"),
        ({"pairs": [("base", "base")]}, "itself"),
        ({"margins": {"readng": 0.1}}, "no task 'readng'; did you mean 'reading'"),
        ({"margins": {"reading": 0}}, "above 0"),
        ({"margins": {"reading": math.inf}}, "a finite value above 0"),
        ({"level": 95}, "level"),
        ({"suite": suite_of(TaskEntry(task="terms", metric="ac,none"))}, "known: acc"),
    ],
)
def test_wrong_options_say_what_is_known(options, message):
    with pytest.raises(InputError, match=message):
        compare_loaded(make_runs(n=3, arms=("base", "adapter")), **options)


def test_one_run_is_no_comparison():
    with pytest.raises(InputError, match="two arms"):
        compare_loaded(make_runs(n=2, arms=("base",)))


def test_notes_name_absent_tasks_and_unequal_packages():
    runs = make_runs(n=3, arms=("base", "adapter"))
    header = runs["adapter"].run.model_copy(update={"packages": {"lm_eval": "0.4.12"}})
    runs["adapter"] = LoadedRun(header, runs["adapter"].rows)
    notes = compare_loaded(runs, suite=suite_of("tickets", "gsm8k"), notes=("first",)).notes
    assert notes[0] == "first"
    assert any("gsm8k" in note and "no run" in note for note in notes)
    assert any("lm_eval differs" in note and "0.4.12" in note for note in notes)
