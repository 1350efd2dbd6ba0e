"""Several training runs of one arm: their mean, and the interval that holds the spread between them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from lora_eval.compare import compare_loaded, load_stored, write_comparison
from lora_eval.errors import InputError
from lora_eval.records import LoadedRun, Work
from lora_eval.runstore import write_run
from lora_eval.stats.training_runs import average_runs
from tests.simulated import make_row, make_run, make_runs, make_suite


def trained(k=3, n=60):
    """Base, and k adapters that were trained with different seeds."""
    runs = {"base": make_runs(n=n, arms=("base",))["base"]}
    for number in range(1, k + 1):
        other = make_runs(n=n, seed=7 + number, arms=("base", "adapter"))["adapter"]
        answers = {(row.task, row.item_id): row.metrics for row in other.rows}
        rows = [
            dataclasses.replace(row, metrics=answers[(row.task, row.item_id)])
            for row in make_runs(n=n, arms=("base",))["base"].rows
        ]
        # A story's words are drawn anew with each seed: keep the base's, with a change.
        rows = [
            dataclasses.replace(
                row,
                metrics={"word_perplexity": own.metrics["word_perplexity"] * (1 + 0.01 * number)},
            )
            if row.task == "story"
            else row
            for row, own in zip(rows, runs["base"].rows, strict=True)
        ]
        runs[f"a#{number}"] = make_run(f"a#{number}", rows)
    return runs


def members(k):
    return {"a": tuple(f"a#{number}" for number in range(1, k + 1))}


def main_pairs(comparison, a="base", b="a"):
    return {
        task.task: next(pair for pair in task.pairs if (pair.a, pair.b) == (a, b))
        for task in comparison.tasks
        if task.primary
    }


def test_an_arm_is_the_mean_of_its_runs():
    runs = trained(2, n=10)
    mean = average_runs("a", {name: runs[name] for name in ("a#1", "a#2")})
    for row, one, two in zip(mean.rows, runs["a#1"].rows, runs["a#2"].rows, strict=True):
        for metric, value in row.metrics.items():
            assert value == (one.metrics[metric] + two.metrics[metric]) / 2
    assert mean.run.variant.fingerprint is None
    assert mean.run.variant.path == "models/a#1, models/a#2"
    assert mean.run.wall_seconds == pytest.approx(2 * 41.3)
    results = {(r.task, r.metric): r.value for r in mean.run.results}
    single = [{(r.task, r.metric): r.value for r in runs[name].run.results} for name in ("a#1", "a#2")]
    assert results[("terms", "acc")] == pytest.approx(np.mean([s[("terms", "acc")] for s in single]))
    story = ("story", "word_perplexity")
    assert results[story] == pytest.approx(math.sqrt(single[0][story] * single[1][story]), rel=1e-12)


def test_what_a_run_lacks_is_missing():
    runs = trained(2, n=10)
    first, second = runs["a#1"], runs["a#2"]
    rows = [
        dataclasses.replace(second.rows[0], metrics={"exact_match": None}, reason="cut"),
        *second.rows[2:],
    ]
    mean = average_runs("a", {"a#1": first, "a#2": LoadedRun(second.run, rows)})
    assert mean.rows[0].metrics["exact_match"] is None
    assert mean.rows[0].reason == "a#2: cut"
    assert len(mean.rows) == len(first.rows) - 1


def test_unequal_answers_are_told_apart():
    own = [make_row("t", 0, {"acc": 1.0}, output=text) for text in ("yes", "no")]
    both = {f"a#{i + 1}": make_run("a", [row]) for i, row in enumerate(own)}
    assert average_runs("a", both).rows[0].output == "[a#1] yes\n[a#2] no"
    same = {name: make_run("a", [own[0]]) for name in ("a#1", "a#2")}
    assert average_runs("a", same).rows[0].output == "yes"


def test_work_is_added_up():
    runs = {
        name: make_run(
            "a", [make_row("t", 0, {"acc": 1.0})], work=Work(requested_tokens=90, forwarded_tokens=f)
        )
        for name, f in (("a#1", 30), ("a#2", 60))
    }
    work = average_runs("a", runs).run.work
    assert (work.requested_tokens, work.forwarded_tokens, work.ratio) == (180, 90, 2.0)


def test_unequal_prompts_and_single_runs_are_refused():
    one, other = (make_run("a", [make_row("t", 0, {"acc": 1.0}, prompt=text)]) for text in ("x", "y"))
    other.rows[0] = dataclasses.replace(other.rows[0], doc_hash=one.rows[0].doc_hash)
    with pytest.raises(InputError, match="task t, item 0: the prompt of a#2 differs from that of a#1"):
        average_runs("a", {"a#1": one, "a#2": other})
    with pytest.raises(InputError, match="two of them"):
        average_runs("a", {"a#1": one})


@pytest.mark.parametrize("k", [2, 3])
def test_the_interval_holds_the_spread_between_the_runs(k):
    comparison = compare_loaded(trained(k), suite=make_suite(), training_runs=members(k))
    for name, pair in main_pairs(comparison).items():
        assert len(pair.run_differences) == k
        assert [part.source for part in pair.variance_parts] == ["items", "runs of b"]
        items, runs = pair.variance_parts
        assert runs.degrees_of_freedom == k - 1
        assert pair.standard_error == pytest.approx(math.sqrt(items.variance + runs.variance))
        assert pair.degrees_of_freedom is None
        assert f"{k} training runs" in pair.method
        assert f"{k} training runs: the spread between them rests on" in pair.reason
        assert pair.n_needed is None
        if name != "story":
            assert pair.difference == pytest.approx(np.mean(pair.run_differences), abs=1e-12)
            assert runs.variance == pytest.approx(np.var(pair.run_differences, ddof=1) / k, rel=1e-9)
            assert pair.between_runs_sd == pytest.approx(np.std(pair.run_differences, ddof=1))
    story = main_pairs(comparison)["story"]
    logs = np.log1p(
        np.array(story.run_differences)
        / next(task.means["base"] for task in comparison.tasks if task.task == "story")
    )
    assert math.log(story.ratio) == pytest.approx(logs.mean(), rel=1e-9)
    assert story.variance_parts[1].variance == pytest.approx(np.var(logs, ddof=1) / k, rel=1e-9)


def test_equal_runs_add_no_variance():
    runs = trained(2)
    runs["a#2"] = make_run("a#2", runs["a#1"].rows)
    found = main_pairs(compare_loaded(runs, suite=make_suite(), training_runs=members(2)))
    assert found["terms"].variance_parts[1].variance == 0
    assert found["terms"].run_differences[0] == found["terms"].run_differences[1]


def test_runs_of_both_arms_count():
    runs = trained(4)
    groups = {"a": ("a#1", "a#2"), "c": ("a#3", "a#4")}
    comparison = compare_loaded(runs, suite=make_suite(), training_runs=groups, more_pairs=[("a", "c")])
    assert [arm.name for arm in comparison.arms] == ["base", "a", "c"]
    pair = main_pairs(comparison, "a", "c")["terms"]
    assert [part.source for part in pair.variance_parts] == ["items", "runs of a", "runs of b"]
    assert len(pair.run_differences) == 2
    back = compare_loaded(runs, suite=make_suite(), training_runs=groups, pairs=[("c", "a")])
    mirrored = main_pairs(back, "c", "a")["terms"]
    assert (mirrored.ci_low, mirrored.ci_high) == pytest.approx((-pair.ci_high, -pair.ci_low), rel=1e-12)


def test_macro_averages_take_the_runs_together():
    comparison = compare_loaded(trained(3), suite=make_suite(), training_runs=members(3))
    score = comparison.suite_scores[0]
    pairs = main_pairs(comparison)
    by_run = np.mean([pairs[task].run_differences for task in score.tasks], axis=0)
    items = sum(pairs[task].variance_parts[0].variance for task in score.tasks) / len(score.tasks) ** 2
    assert score.pairs[0].standard_error ** 2 == pytest.approx(items + np.var(by_run, ddof=1) / 3, rel=1e-9)


def test_it_is_stored_and_read_back(tmp_path):
    runs = trained(2, n=20)
    for name, run in runs.items():
        write_run(tmp_path / "runs" / name, run.run, run.rows)
    comparison = compare_loaded(runs, suite=make_suite(), training_runs=members(2))
    write_comparison(comparison, runs, tmp_path)
    stored = load_stored(tmp_path)
    assert list(stored.runs) == ["base", "a#1", "a#2"]
    assert stored.comparison == comparison
    assert [run.path for run in comparison.arms[1].runs] == ["models/a#1", "models/a#2"]


def test_resampling_knows_no_training_runs():
    with pytest.raises(InputError, match="task tickets: --method bootstrap knows one source of variation"):
        compare_loaded(trained(2), suite=make_suite(), training_runs=members(2), method="bootstrap")
