"""A suite on both arms: right answers that became wrong, tested; and the distributions on its items."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from lora_eval.evaluate import open_suite
from lora_eval.protocols import GenerateRequest, Generation, Score, ScoreRequest
from lora_eval.records import EvalSuite, LoadedRun, Run, SampleRow, TaskEntry, TaskResult, Variant
from lora_eval.reports.numbers import about_text
from lora_eval.stats import paired_binary
from lora_eval.verify import ArmPath, Options, verify
from lora_eval.verify.suite_items import Recorder, check_suite, suite_failures
from tests.suites.conftest import write_tasks


class Named:
    """What `check_suite` needs of a suite."""

    name, fingerprint, limit, groups = "mine", "sha256:0", None, {}

    def __init__(self, **entry):
        self.record = EvalSuite(name="mine", version="1", tasks=(TaskEntry(task="t", **entry),))


def run(values, metric="acc", prompt="p", **row):
    rows = [
        SampleRow(task="t", item_id=n, doc_hash="", filter="none", repeat=0, prompt_sha256=prompt, prompt="",
                  target="", output="", metrics={metric: value}, **row)
        for n, value in enumerate(values)
    ]  # fmt: skip
    result = TaskResult(task="t", metric=metric, filter="none", higher_is_better=metric == "acc",
                        value=None, n=len(rows))  # fmt: skip
    header = Run(arm="a", variant=Variant(kind="base", path=""), suite="s", suite_fingerprint="", engine="e",
                 dtype="float32", results=(result,))  # fmt: skip
    return LoadedRun(header, rows)


def clustered(values, labels):
    """A run whose items belong to clusters."""
    found = run(values)
    rows = [replace(row, cluster=label) for row, label in zip(found.rows, labels, strict=True)]
    return LoadedRun(found.run, rows)


def test_items_are_paired_and_the_margin_decides():
    before, after = [1.0] * 600 + [0.0] * 200, [1.0] * 596 + [0.0] * 200 + [1.0] * 4
    found = check_suite(Named(), run(before), run(after), margin=0.02)
    expected = paired_binary(before, after)
    assert (found.items, found.lost, found.gained, found.verdict) == (800, 4, 4, "not_worse")
    assert (found.difference, found.ci_low, found.p_value) == (0.0, expected.ci_low, expected.p_value)
    assert check_suite(Named(), run(before), run(after), margin=0.005).verdict == "inconclusive"
    worse = check_suite(Named(), run(before), run([1.0] * 570 + [0.0] * 230), margin=0.1)
    assert (worse.lost, worse.verdict) == (30, "worse")


def test_too_few_items_decide_nothing_and_say_how_many_would():
    found = check_suite(Named(), run([1.0] * 30), run([1.0] * 29 + [0.0]), margin=0.02)
    assert found.verdict == "inconclusive"
    assert found.n_needed is None or found.n_needed > 30


def test_every_item_counts_once_by_the_figure_of_the_verdict():
    """A task with `acc` and `acc_norm` is judged by the one that its suite names."""

    def both(acc, acc_norm):
        one, two = run(acc), run(acc_norm, "acc_norm")
        rows = [
            replace(row, metrics=row.metrics | more.metrics)
            for row, more in zip(one.rows, two.rows, strict=True)
        ]
        results = [
            result.model_copy(update={"higher_is_better": True})
            for result in (*one.run.results, *two.run.results)
        ]
        return LoadedRun(one.run.model_copy(update={"results": results}), rows)

    before, after = both([1.0] * 9, [1.0] * 9), both([0.0] * 9, [1.0] * 8 + [0.0])
    found = check_suite(Named(metric="acc_norm,none"), before, after, margin=0.02)
    assert (found.items, found.lost, found.gained) == (9, 1, 0)


def test_a_figure_where_lower_is_better_is_turned_round():
    found = check_suite(Named(), run([0.0] * 10, "wrong"), run([0.0] * 8 + [1.0] * 2, "wrong"), margin=0.02)
    assert (found.lost, found.gained) == (2, 0)


def test_items_that_depend_on_each_other_count_by_cluster():
    values = [1.0] * 40, [1.0] * 36 + [0.0] * 4
    alone = check_suite(Named(), run(values[0]), run(values[1]), margin=0.02)
    together = check_suite(
        Named(cluster="document"), run(values[0], cluster="d"), run(values[1], cluster="d"), margin=0.02
    )
    assert "cluster" in together.method
    assert alone.method != together.method


def test_items_in_clusters_are_judged_as_in_a_comparison():
    """Right-or-wrong items have an interval though none changed; one cluster bounds nothing, and says so."""
    named, labels = Named(cluster="document"), [f"d{n % 5}" for n in range(40)]
    found = check_suite(named, *(clustered([1.0] * 40, labels) for _ in "ab"), margin=0.02)
    expected = paired_binary([1.0] * 40, [1.0] * 40, clusters=labels)
    assert (found.ci_low, found.ci_high) == (expected.ci_low, expected.ci_high)
    assert found.ci_low < -0.2 and found.verdict == "inconclusive"
    [said] = suite_failures(found, "near")
    assert said.startswith("suite mine: not shown to lose less than 0.02: 0 right items became wrong")
    assert "only 5 independent clusters" in said
    assert suite_failures(found, "equal") == []

    one = check_suite(named, *(clustered([1.0] * 40, ["d"] * 40) for _ in "ab"), margin=0.02)
    assert (one.ci_low, one.verdict) == (None, "inconclusive")
    [said] = suite_failures(one, "near")
    assert "1 independent item: the spread is unknown" in said
    assert suite_failures(one, "equal") == []


def test_the_items_that_would_decide_are_a_round_number():
    values = [1.0] * 600 + [0.0] * 200, [1.0] * 596 + [0.0] * 200 + [1.0] * 4
    found = check_suite(Named(), run(values[0]), run(values[1]), margin=0.005)
    assert found.n_needed > 1000 and found.n_needed % 100
    [said] = suite_failures(found, "near")
    assert said.endswith(f"; about {about_text(found.n_needed)} items would decide")
    assert "interval from -0.0" in said


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        (run([0.3, 0.5]), run([0.3, 0.4]), "no task of the suite says right or wrong"),
        (run([1.0]), run([1.0], prompt="q"), "the prompt differs between arm a"),
    ],
)
def test_what_cannot_be_tested_says_why(a, b, reason):
    found = check_suite(Named(), a, b, margin=0.02)
    assert (found.items, found.verdict, found.difference) == (0, None, None)
    assert reason in found.reason


class Echo:
    """An engine whose answers are known."""

    name, dtype, max_length, tokenizer, arms = "echo", "float32", 100, None, ("a",)

    def __init__(self):
        self.work = Counter()

    def score(self, arm, requests, progress, finished=None):
        return [Score(-float(sum(request.continuation_ids)), True) for request in requests]

    def generate(self, arm, requests, progress, finished=None):
        return [Generation("", request.input_ids[::-1], "stop") for request in requests]


def test_the_recorder_keeps_one_sequence_for_each_prompt_with_the_likeliest_choice():
    recorder = Recorder(Echo())
    choices = [ScoreRequest((1, 2), (n,)) for n in (9, 4, 7)] + [ScoreRequest((3,), (5, 6))]
    assert recorder.score("a", choices, lambda *_: None) == Echo().score("a", choices, None)
    recorder.generate("a", [GenerateRequest((7, 8), (), 5)], lambda *_: None)
    asked = recorder.asked(samples=10, new_tokens=1)
    assert [(item.ids, item.start, item.source) for item in asked] == [
        ((1, 2, 4), 2, "suite"),
        ((3, 5), 1, "suite"),
        ((7, 8, 8), 2, "suite"),
    ]
    assert len(recorder.asked(samples=2, new_tokens=1)) == 2


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    folder = write_tasks(tmp_path_factory.mktemp("tasks"))
    return open_suite(tasks=["t_choice", "t_generate"], include_path=str(folder))


def test_a_suite_is_asked_of_both_arms_once(qlora, adapter, prompts, suite, tmp_path):
    options = Options(samples=8, store=tmp_path / "store", margin=0.3)
    right = verify(
        adapter, ArmPath("shipped", "merged", qlora / "trained"), prompts, options=options, suite=suite
    )
    assert right.passed, right.failures
    assert (right.suite.name, right.suite.verdict) == (suite.name, "not_worse")
    assert right.suite.items > 20
    assert right.suite.measured.items == right.measured.items == 8
    assert right.suite.measured.tokens != right.measured.tokens
    assert right.suite.measured.mean_kl <= right.suite.tolerance["kl_mean"]
    wrong = verify(
        adapter, ArmPath("shipped", "merged", qlora / "original"), None, options=options, suite=suite
    )
    assert not wrong.passed
    assert wrong.measured.items == 8  # without prompts the items are what is measured
    assert wrong.suite.measured is None
    again = verify(
        adapter, ArmPath("shipped", "merged", qlora / "trained"), prompts, options=options, suite=suite
    )
    assert again.reference_logits == "stored"
    assert again.suite == right.suite


def test_a_suite_that_is_not_shown_to_be_no_worse_fails_the_verification(qlora, adapter, suite, tmp_path):
    """Whatever the distributions: limits given by hand are kept here."""
    loose = {"kl_mean": 100.0, "answer_kl": 100.0, "flips": 1.0}
    options = Options(samples=4, expected="near", tolerance=loose, margin=0.001, store=tmp_path / "store")
    shipped = ArmPath("shipped", "merged", qlora / "trained")
    record = verify(adapter, shipped, None, options=options, suite=suite)
    assert (record.passed, record.suite.verdict) == (False, "inconclusive")
    [failure] = record.failures
    assert failure.startswith(f"suite {suite.name}: not shown to lose less than 0.001: ")
    record = verify(adapter, shipped, None, options=replace(options, expected=None), suite=suite)
    assert record.passed  # a merge fails where it is worse
