"""Runs that were stopped early: every figure of their comparison holds at every look."""

from __future__ import annotations

import dataclasses

import pytest

from lora_eval.compare import compare_loaded
from lora_eval.errors import InputError
from lora_eval.records import (
    Comparison,
    EvalSuite,
    Gate,
    LoadedRun,
    Sequential,
    SequentialTask,
    TaskResult,
)
from lora_eval.schema import dump_record
from lora_eval.stats import law_of
from lora_eval.stats.gate import judge_gate
from lora_eval.stats.looks import ORDER_SEED, in_order
from lora_eval.stats.score_interval import score_interval
from lora_eval.stats.sequential import METHOD, SOURCE, look_sizes, nominal_levels
from lora_eval.stats.stopping import decided_tasks
from tests.simulated import TASKS, make_row, make_run, make_runs, make_suite

N, SEED = 200, 1234
LOOKS = look_sizes(N)


def record(looks: dict[str, int]) -> Sequential:
    """The record of a comparison that stopped at these looks (from 1) of each task."""
    tasks = tuple(
        SequentialTask(task=name, leaves=(name,), items=N, scored=LOOKS[look - 1], look=look, looks=LOOKS,
                       stopped="verdict" if look < len(LOOKS) else "end")
        for name, look in looks.items()
    )  # fmt: skip
    return Sequential(method=METHOD, source=SOURCE, seed=SEED, arms=("base", "adapter"), tasks=tasks)


def stopped(looks: dict[str, int], arms=("base", "adapter")) -> dict[str, LoadedRun]:
    """The simulated runs with the items that were there at these looks."""
    scored = {
        (task, item)
        for task, look in looks.items()
        for _, item in in_order(((task, i) for i in range(N)), SEED)[: LOOKS[look - 1]]
    }
    runs = {}
    for name, run in make_runs(N, arms=arms).items():
        rows = [row for row in run.rows if (row.task, row.item_id) in scored]
        kept = make_run(name, rows, seeds={"fewshot": SEED, ORDER_SEED: SEED})
        runs[name] = LoadedRun(kept.run.model_copy(update={"variant": run.run.variant}), rows)
    return runs


def compared(looks: dict[str, int], **options) -> Comparison:
    runs = stopped(looks, options.pop("arms", ("base", "adapter")))
    return compare_loaded(runs, suite=make_suite(), sequential=record(looks), **options)


def lines(comparison: Comparison) -> dict:
    return {task.task: (task, task.pairs[0]) for task in comparison.tasks if task.primary}


@pytest.fixture(scope="module")
def third() -> Comparison:
    return compared(dict.fromkeys(TASKS, 3))


def test_figures_are_over_the_scored_items(third):
    for task, pair in lines(third).values():
        assert task.n == pair.n == LOOKS[2] == 133
        assert pair.method.endswith("group sequential, look 3 of 4")
        assert [look.n for look in pair.looks] == [59, 89, 133]
        assert [look.share for look in pair.looks] == [size / N for size in LOOKS[:3]]
    assert third.sequential.tasks[0].scored == 133
    assert third.suite_scores == ()


def test_bounds_are_those_of_each_look_at_its_own_level(third):
    """Made again here from fixed-size comparisons of the items of each look."""
    levels = nominal_levels([size / N for size in LOOKS[:3]], 0.05)
    parts = []
    for look, level in zip((1, 2, 3), levels, strict=True):
        runs = stopped(dict.fromkeys(TASKS, look))
        plain = {name: dataclasses.replace(run, run=run.run.model_copy(update={"seeds": {"fewshot": SEED}}))
                 for name, run in runs.items()}  # fmt: skip
        parts.append(lines(compare_loaded(plain, suite=make_suite(), level=1.0 - level)))
    for name, (_, pair) in lines(third).items():
        fixed = [part[name][1] for part in parts]
        if pair.ratio is None:
            bounds = [cautious(each, level) for each, level in zip(fixed, levels, strict=True)]
            assert pair.ci_low == pytest.approx(max(low for low, _ in bounds), rel=1e-3, abs=1e-4)
            assert pair.ci_high == pytest.approx(min(high for _, high in bounds), rel=1e-3, abs=1e-4)
        else:
            assert pair.ratio_low == pytest.approx(max(each.ratio_low for each in fixed), rel=1e-3)
            assert pair.ratio_high == pytest.approx(min(each.ratio_high for each in fixed), rel=1e-3)
        assert pair.difference == fixed[-1].difference
        rejects = any(each.p_value < level for each, level in zip(fixed, levels, strict=True))
        assert (pair.p_value < 0.05) == rejects


def cautious(pair, level) -> tuple[float, float]:
    """The interval of one look: of right-or-wrong items it holds the score interval too."""
    if not pair.method.startswith("exact McNemar"):
        return pair.ci_low, pair.ci_high
    low, high = score_interval(pair.wins, pair.losses, pair.ties, 1.0 - level)
    return min(low, pair.ci_low), max(high, pair.ci_high)


def test_nothing_is_as_narrow_as_a_fixed_size(third):
    runs = stopped(dict.fromkeys(TASKS, 3))
    plain = {name: dataclasses.replace(run, run=run.run.model_copy(update={"seeds": {"fewshot": SEED}}))
             for name, run in runs.items()}  # fmt: skip
    fixed = lines(compare_loaded(plain, suite=make_suite()))
    wider = 0
    for name, (_, pair) in lines(third).items():
        wider += pair.ci_high - pair.ci_low > fixed[name][1].ci_high - fixed[name][1].ci_low
        assert pair.p_mid is None and pair.standard_error is None
    assert wider >= len(TASKS) - 1


def test_the_law_of_a_stored_pair_is_the_same(third):
    stored = Comparison.model_validate_json(dump_record(third))
    assert stored == third
    for task, pair in lines(stored).values():
        law = law_of(pair, higher_is_better=task.higher_is_better)
        assert law.interval(pair.level) == pytest.approx((pair.ci_low, pair.ci_high), rel=1e-9, abs=1e-12)
        low, high = law.interval(0.9)
        assert pair.ci_low < low <= pair.difference <= high < pair.ci_high


def test_a_look_at_all_items_alone_would_have_been_a_fixed_size():
    assert compare_loaded(make_runs(), suite=make_suite()).sequential is None
    last = lines(compared(dict.fromkeys(TASKS, 4)))
    fixed = lines(compare_loaded(make_runs(N, arms=("base", "adapter")), suite=make_suite()))
    for name, (task, pair) in last.items():
        assert pair.n == N
        assert task.means == fixed[name][0].means
        assert pair.difference == fixed[name][1].difference


def test_tasks_may_stop_at_different_looks_and_holm_goes_over_all_of_them():
    looks = {name: 1 + place % 4 for place, name in enumerate(TASKS)}
    found = lines(compared(looks))
    assert {name: pair.n for name, (_, pair) in found.items()} == {n: LOOKS[k - 1] for n, k in looks.items()}
    p_values = sorted(pair.p_value for _, pair in found.values())
    assert min(pair.p_adjusted for _, pair in found.values()) == pytest.approx(p_values[0] * len(TASKS))


def test_later_arms_answer_the_same_items_and_have_the_same_looks():
    found = compared(dict.fromkeys(TASKS, 2), arms=("base", "adapter", "merged", "gptq"))
    for task in found.tasks:
        for pair in task.pairs:
            assert len(pair.looks) in (0, 2)  # none where no item's score differs


def test_runs_that_do_not_belong_together_are_refused():
    looks = dict.fromkeys(TASKS, 2)
    runs = stopped(looks)
    with pytest.raises(InputError, match="stopped early by `compare --sequential`"):
        compare_loaded(runs, suite=make_suite())
    with pytest.raises(InputError, match="89 items of task tickets, but 133 were scored"):
        compare_loaded(runs, suite=make_suite(), sequential=record(dict.fromkeys(TASKS, 3)))
    with pytest.raises(InputError, match="--method bootstrap is made for one look"):
        compare_loaded(runs, suite=make_suite(), sequential=record(looks), method="bootstrap")


def test_tasks_are_decided_by_their_verdicts(third):
    verdicts = {name: pair.verdict for name, (_, pair) in lines(third).items()}
    decided = decided_tasks(third)
    assert decided == {name: "verdict" for name, verdict in verdicts.items() if verdict != "inconclusive"}
    assert {"tickets", "terms"} <= decided.keys()
    assert "inconclusive" in verdicts.values()


def test_tasks_with_rules_are_decided_by_the_gate(third):
    rules = [
        {"task": "tickets", "min_gain": 0.66},  # nearly the gain: not decided, though it is better
        {"task": "facts", "max_drop": 0.2},
        {"task": "ordering", "max_drop": 0.5, "arm": "merged"},  # no arm here
        {"task": "story", "max_perplexity_ratio": 5.0},
    ]
    gate = Gate.model_validate({"schema": 1, "rules": rules})
    plain, decided = decided_tasks(third), decided_tasks(third, gate)
    assert plain["tickets"] == "verdict"
    assert "tickets" not in decided
    assert decided["facts"] == decided["story"] == "gate"
    assert decided["terms"] == "verdict"
    assert ("ordering" in decided) == ("ordering" in plain)


def test_a_mean_over_tasks_has_no_interval_of_several_looks():
    """Its tasks have unequal numbers of items at a look, so its figure is not the mean of the items."""
    sizes = {"g_a": 150, "g_b": 50}
    values = {name: [float(i % 3 > 0) for i in range(n)] for name, n in sizes.items()}
    rows = {
        arm: [
            make_row(task, i, {"acc": v if arm == "base" else 1.0})
            for task in sizes
            for i, v in enumerate(values[task])
        ]
        for arm in ("base", "adapter")
    }
    runs = {}
    for arm, own in rows.items():
        kept = [row for row in own if (row.task, row.item_id) in first_items(sizes)]
        run = make_run(arm, kept, seeds={"fewshot": SEED, ORDER_SEED: SEED})
        means = [
            sum(r.metrics["acc"] for r in kept if r.task == t) / sum(r.task == t for r in kept) for t in sizes
        ]
        figure = TaskResult(
            task="g", metric="acc", filter="none", higher_is_better=True, value=sum(means) / 2, n=0
        )
        results = (*run.run.results, figure)
        runs[arm] = LoadedRun(run.run.model_copy(update={"results": results}), kept)
    task = SequentialTask(
        task="g", leaves=tuple(sizes), items=N, scored=LOOKS[1], look=2, looks=LOOKS, stopped="end"
    )
    sequential = Sequential(method=METHOD, source=SOURCE, seed=SEED, arms=("base", "adapter"), tasks=(task,))
    suite = EvalSuite(name="s", version="1", tasks=("g",))
    found = compare_loaded(runs, suite=suite, groups={"g": list(sizes)}, sequential=sequential)
    line = next(line for line in found.tasks if line.task == "g")
    assert (line.pairs[0].ci_low, line.pairs[0].p_value) == (None, None)
    assert "not as a mean of items" in line.pairs[0].reason
    once = sequential.model_copy(
        update={"tasks": (task.model_copy(update={"looks": (LOOKS[1],), "look": 1}),)}
    )
    found = compare_loaded(runs, suite=suite, groups={"g": list(sizes)}, sequential=once)
    assert next(line for line in found.tasks if line.task == "g").pairs[0].ci_low is not None


def first_items(sizes):
    every = in_order([(name, i) for name, n in sizes.items() for i in range(n)], SEED)
    return set(every[: LOOKS[1]])


def test_the_gates_bound_holds_at_every_look(third):
    gate = Gate.model_validate({"schema": 1, "level": 0.95, "rules": [{"task": "reading", "max_drop": 0.01}]})
    check = judge_gate(third, gate).checks[0]
    task, pair = lines(third)["reading"]
    low, high = law_of(pair, higher_is_better=True).interval(0.9)
    assert check.level == 0.95
    assert low - 0.03 < check.low <= low + 1e-9  # a gate takes the wider one of two intervals
    assert high - 1e-9 <= check.high < high + 0.03
    assert check.low > pair.ci_low
    assert task.n == 133
