"""The browser's items: all of them, packed small; what is cut or left out is counted."""

from __future__ import annotations

import base64
import json
import random
import zlib
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_eval.compare import compare_loaded
from lora_eval.reports.html import PAGE_BYTES, render_html
from lora_eval.reports.items import list_items
from lora_eval.reports.pack import STEPS, pack_items
from tests.simulated import make_row, make_run, make_runs, make_suite


@pytest.fixture(scope="module")
def runs():
    return make_runs()


@pytest.fixture(scope="module")
def comparison(runs):
    return compare_loaded(runs, suite=make_suite())


def unpack(packed):
    return json.loads(zlib.decompress(base64.b64decode(packed.data)))


def pack(comparison, runs, budget=10**9):
    return pack_items(comparison, list_items(comparison, runs), budget)


def two_arms(make, n, **changes):
    """Runs of two arms over one task: `make(arm, item)` gives the row's metrics and texts."""
    rows = {arm: [make_row("t", i, **make(arm, i), **changes) for i in range(n)] for arm in ("base", "tuned")}
    return {arm: make_run(arm, own) for arm, own in rows.items()}


def text_of(data, item, arm):
    own = data["outputs"][item][arm]
    return data["outputs"][item][own] if isinstance(own, int) else own


def test_every_item_is_there_with_every_arm(comparison, runs):
    packed = pack(comparison, runs)
    assert packed.shown == packed.total == 1600
    assert packed.cut == 0
    data = unpack(packed)
    names = [data["leaves"][leaf]["name"] for leaf in data["leaf"]]
    expected = {(row.task, row.item_id): row for row in runs["gptq"].rows}
    for place, key in enumerate(zip(names, data["id"], strict=True)):
        row = expected[key]
        prefix = data["leaves"][data["leaf"][place]]["prefix"]
        assert prefix + data["prompt"][place] == row.prompt
        assert text_of(data, place, 3) == row.output
        if row.task not in ("story", "summaries"):
            assert [data["values"][place][3]] == [value for value in row.metrics.values() if value <= 1]
    story = names.index("story")
    assert 4 < data["values"][story][0] < 12  # the item's own perplexity, not a log-likelihood


def test_changes_are_counted_as_the_comparison_counts_them(comparison, runs):
    changed = [item for item in list_items(comparison, runs) if item.change > 0]
    tickets = next(task for task in comparison.tasks if task.task == "tickets" and task.primary)
    pair = next(pair for pair in tickets.pairs if (pair.a, pair.b) == ("base", "adapter"))
    own = [item for item in changed if item.leaf == "tickets"]
    moved = [item for item in own if item.answers[0].value != item.answers[1].value]
    assert len(moved) == pair.wins + pair.losses
    assert pack(comparison, runs).changed == len(changed)


@pytest.mark.parametrize("budget", [60_000, 30_000, 10_000])
def test_a_budget_is_kept_and_what_it_leaves_out_is_counted(comparison, runs, budget):
    packed = pack(comparison, runs, budget)
    assert len(packed.data) <= budget
    data = unpack(packed)
    assert len(data["id"]) == packed.shown
    assert len(set(data["task"])) == 8  # each task has its share
    if packed.shown < packed.total:
        assert packed.changed_shown == min(packed.changed, packed.shown)  # changed items go last


def test_the_page_says_what_it_leaves_out(comparison, runs):
    page = render_html(comparison, runs, page_bytes=30_000)
    assert "items are here (" in page
    assert "so that this page stays small" in page


def test_long_texts_are_cut_and_say_so():
    long = "word " * 2000
    runs = two_arms(
        lambda arm, i: {"metrics": {"acc": float(arm == "tuned")}, "prompt": f"{long}{i}", "output": long}, 3
    )
    comparison = compare_loaded(runs)
    whole = unpack(pack(comparison, runs))
    assert len(whole["prompt"][0]) < STEPS[0].prompt + 60
    assert whole["prompt"][0].endswith(" 0")  # the end holds the question
    assert whole["prompt"][0].startswith("[7,001 characters cut …]")
    assert whole["outputs"][0] == [f"{long[:2000]} [… 8,000 characters cut]", 0]  # the same text stands once
    assert pack(comparison, runs).cut == 3


def test_a_beginning_that_all_prompts_share_stands_once():
    shots = "".join(f"Question {i}: what is {i} + 1?\nAnswer: {i + 1}\n\n" for i in range(40))
    runs = two_arms(
        lambda arm, i: {"metrics": {"acc": float(i % 2)}, "prompt": f"{shots}Question: {i}?\nAnswer:"}, 4
    )
    data = unpack(pack(compare_loaded(runs), runs))
    assert data["leaves"] == [{"name": "t", "prefix": shots}]
    assert data["prompt"] == [f"Question: {i}?\nAnswer:" for i in range(4)]


def test_choices_in_hundredths_and_values_that_are_no_numbers():
    scores = (-1.234, float("-inf"), -3.0)
    runs = two_arms(lambda arm, i: {"metrics": {"acc": None if i else 1.0}}, 2, log_likelihoods=scores)
    data = unpack(pack(compare_loaded(runs), runs))
    assert data["scores"][0][0] == [-123, -100_000_000_000, -300]
    assert data["values"][1] == [None, None]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=200), min_size=1, max_size=5))
def test_any_text_comes_back(texts):
    runs = two_arms(
        lambda arm, i: {"metrics": {"acc": float(arm == "base")}, "output": texts[i] + arm}, len(texts)
    )
    data = unpack(pack(compare_loaded(runs), runs))
    assert [text_of(data, i, 1) for i in range(len(texts))] == [text + "tuned" for text in texts]


def realistic(n, seed=0):
    """Two arms on `n` items of a length that benchmarks have: five shots drawn for each item from a pool, a
    question of some 60 words, four choices with log-likelihoods on half of them, else answers of 80 words.
    """
    generator = random.Random(seed)
    letters = "etaoinshrdlucmfwygpbvk"
    words = ["".join(generator.choices(letters, k=generator.randint(2, 9))) for _ in range(8_000)]
    weights = list(accumulate(1 / (rank + 3) for rank in range(len(words))))

    def text(count):
        return " ".join(generator.choices(words, cum_weights=weights, k=count))

    pool = [f"Question: {text(60)}\nAnswer: {text(12)}\n\n" for _ in range(60)]
    rows = {"base": [], "tuned": []}
    for item in range(n):
        prompt = "".join(generator.sample(pool, 5)) + f"Question: {text(60)}\nAnswer:"
        common = text(50)
        for own in rows.values():
            value = float(generator.random() < 0.6)
            scores = tuple(generator.gauss(-40, 9) for _ in range(4)) if item % 2 else ()
            output = text(4) if item % 2 else f"{common} {text(30)}"
            own.append(
                make_row(
                    f"task{item % 7}", item, {"acc": value}, prompt=prompt, output=output, target=text(4),
                    log_likelihoods=scores,
                )
            )  # fmt: skip
    return {arm: make_run(arm, own) for arm, own in rows.items()}


@pytest.mark.slow
def test_ten_thousand_items_of_realistic_size_fit_into_two_megabytes():
    runs = realistic(10_000)
    comparison = compare_loaded(runs)
    page = render_html(comparison, runs)
    assert len(page.encode()) < PAGE_BYTES == 2_000_000
    assert "All 10,000 items" in page
