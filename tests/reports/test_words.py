"""The sentences: better and worse only where the verdict says so, drops as loud as gains."""

from __future__ import annotations

import pytest

from lora_eval.compare import compare_loaded
from lora_eval.errors import InputError
from lora_eval.records import Divergence, EvalSuite, TaskEntry, Variant, Verification
from lora_eval.reports.words import findings, headline, mark, rows_of
from tests.simulated import make_row, make_run, make_runs, make_suite


@pytest.fixture(scope="module")
def comparison():
    return compare_loaded(make_runs(), suite=make_suite())


def small(target, guard=None, n=60):
    """A comparison of one target and one guard: (right under base, right under tuned) of `n` items."""
    shares = {"skill": target, "memory": guard or (n // 2, n // 2)}
    rows = {
        arm: [
            make_row(task, i, {"acc": float(i < right[place])})
            for task, right in shares.items()
            for i in range(n)
        ]
        for place, arm in enumerate(("base", "tuned"))
    }
    tasks = (TaskEntry(task="skill", role="target"), TaskEntry(task="memory", role="guard", margin=0.1))
    runs = {arm: make_run(arm, own) for arm, own in rows.items()}
    return compare_loaded(runs, suite=EvalSuite(name="s", version="1", tasks=tasks))


def by_heading(comparison, verifications=()):
    return {finding.heading: finding for finding in findings(comparison, verifications)}


def test_headline_tells_gain_and_drop(comparison):
    assert headline(comparison) == "adapter is better than base on both targets, but worse on 2 of 6 guards."


@pytest.mark.parametrize(
    ("target", "guard", "expected"),
    [
        ((10, 40), None, "tuned is better than base on the target skill, and no guard is measurably worse"),
        ((10, 40), (50, 20), "tuned is better than base on the target skill, but worse on 1 of 1 guards."),
        ((30, 33), None, "tuned is not shown to be better than base on the target skill, and no guard"),
        ((30, 33), (50, 20), "tuned is not shown to be better than base on the target skill, and worse on 1"),
        ((40, 10), (50, 20), "tuned is worse than base on the target skill, and worse on 1 of 1 guards."),
    ],
)
def test_headlines(target, guard, expected):
    assert headline(small(target, guard)).startswith(expected)


def test_targets_without_a_gain_are_named_and_not_called_undecided():
    """One of them is shown to be not worse: that is decided, and no gain."""
    rows = {
        arm: [
            make_row(task, i, {"acc": float(i < right[place])})
            for task, right in {"skill": (100, 190), "style": (100, 101), "tone": (100, 110)}.items()
            for i in range(200)
        ]
        for place, arm in enumerate(("base", "tuned"))
    }
    tasks = tuple(TaskEntry(task=name, role="target", margin=0.05) for name in ("skill", "style"))
    suite = EvalSuite(name="s", version="1", tasks=(*tasks, TaskEntry(task="tone", role="target")))
    found = compare_loaded({arm: make_run(arm, own) for arm, own in rows.items()}, suite=suite)
    verdicts = [pair.verdict for _, pair in rows_of(found, "base", "tuned")]
    assert verdicts == ["better", "not_worse", "better"]
    assert by_heading(found)["Target"].text == "tuned is better on skill and tone; no gain is shown on style."


def test_better_is_never_said_of_an_undecided_target():
    finding = by_heading(small((30, 33)))["Target"]
    assert finding.tone == "open"
    assert finding.text == "No target is shown to have improved over base."
    assert "better" not in finding.text
    assert finding.lines[0].endswith("60 items), detectable 13, about 460 items would decide")


def test_guards_that_dropped_lead_and_carry_the_alarm(comparison):
    finding = by_heading(comparison)["Guards"]
    assert finding.tone == "loss"
    assert finding.text == "adapter is worse than base on reading and story."
    change = "−8 points (95 % interval −13 to −2, 200 items)"  # noqa: RUF001
    assert finding.lines[0] == f"▼ reading: 85.0 % to 77.5 %, {change}"
    assert "not worse within the stated margin" in finding.lines[-1]


def test_an_undecided_guard_says_what_would_have_been_found():
    found = by_heading(small((10, 40), (30, 26)))["Guards"]
    assert found.text.startswith("No guard is measurably worse")
    assert found.lines == (
        "? undecided: memory −7 (detectable 13, n 260)",  # noqa: RUF001
        "(detectable: the smallest change that is found four times in five; n: items that would decide)",
    )


def test_what_ships_counts_changed_items(comparison):
    merged = by_heading(comparison)["What ships: merged"]
    assert (merged.tone, merged.text) == ("safe", "merged scores as adapter on every one of 1,400 items.")
    gptq = by_heading(comparison)["What ships: gptq"]
    assert gptq.tone == "loss"
    assert "247 of 1,400 items score differently: 84 gained, 163 lost" in gptq.text
    counted = [pair for task, pair in rows_of(comparison, "adapter", "gptq") if task.task != "story"]
    assert sum(pair.wins for pair in counted) == 84


def test_no_change_has_its_own_mark(comparison):
    marks = {task.task: mark(pair) for task, pair in rows_of(comparison, "adapter", "merged")}
    assert marks["tickets"] == "same"
    assert marks["facts"] == "not_worse"


def test_without_roles_every_task_is_counted():
    found = compare_loaded(make_runs(arms=("base", "adapter")))
    assert headline(found).startswith("adapter against base: better on 2, worse on 2, ")
    assert by_heading(found)["Tasks"].tone == "loss"


def test_two_adapters_are_told_apart():
    runs = make_runs(n=60, arms=("base", "adapter"))
    second = make_run("second", runs["adapter"].rows)
    found = compare_loaded({**runs, "second": second}, suite=make_suite())
    assert {"Target: adapter", "Target: second"} <= set(by_heading(found))
    assert headline(found).count("better than base") == 2


def test_a_comparison_without_arms_is_bad_input(comparison):
    with pytest.raises(InputError, match="holds no arm"):
        headline(comparison.model_copy(update={"arms": ()}))


@pytest.mark.parametrize("passed", [True, False])
def test_a_verification_is_told(comparison, passed):
    measured = Divergence(
        tokens=100, mean_kl=0.2, p99_kl=1, max_kl=3, top1_agreement=0.9, items=10, item_flips=4
    )
    variants = [Variant(kind=kind, path=kind) for kind in ("adapter", "gptq")]
    record = Verification(
        reference=variants[0],
        candidate=variants[1],
        measured=measured,
        floor=None,
        tolerance={"mean_kl": 0.1},
        tolerance_source="ten times the noise",
        passed=passed,
        failures=() if passed else ("mean KL 0.2 is above 0.1",),
    )
    finding = by_heading(comparison, [record])["Verification: gptq"]
    assert finding.tone == ("safe" if passed else "loss")
    assert ("mean KL 0.2 is above 0.1" in finding.lines) is not passed
    assert "4 of 10 prompts answered differently" in finding.lines[0]
