"""The gate and the suite score in every form of the report."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lora_eval.compare import compare_loaded
from lora_eval.records import Gate
from lora_eval.reports.gates import gate_lines, gate_sentence
from lora_eval.reports.html import render_html
from lora_eval.reports.markdown import render_markdown
from lora_eval.reports.numbers import MINUS
from lora_eval.reports.scores import score_lines
from lora_eval.reports.terminal import print_comparison
from lora_eval.reports.words import findings, headline
from lora_eval.stats.gate import judge_gate
from tests.simulated import make_runs, make_suite

RULES = [
    {"task": "tickets", "min_gain": 0.3},
    {"task": "reading", "max_drop": 0.05},
    {"task": "ordering", "max_drop": 0.02, "min_n": 5000},
    {"task": "story", "max_perplexity_ratio": 1.01},
]


@pytest.fixture(scope="module")
def runs():
    return make_runs(arms=("base", "adapter"))


def gated(runs, rules):
    comparison = compare_loaded(runs, suite=make_suite(), controls={"identity": {"passed": True}})
    gate = judge_gate(comparison, Gate.model_validate({"rules": rules}), "gate.yaml")
    return comparison.model_copy(update={"gate": gate})


def test_every_check_in_words_with_the_digits_of_its_bounds(runs):
    lines = {line.task: line for line in gate_lines(gated(runs, RULES))}
    assert [line.verdict for line in lines.values()] == ["PASS", "INCONCLUSIVE", "INCONCLUSIVE", "FAIL"]
    assert lines["tickets"].rule == "min_gain 0.3"
    assert lines["tickets"].reason == "gain at least +0.57, above +0.3"
    assert lines["reading"].reason.startswith(
        f"gain between {MINUS}0.12 and {MINUS}0.03, so {MINUS}0.05 is not decided"
    )
    assert "min_n asks for 5000" in lines["ordering"].reason
    assert lines["story"].reason.startswith("ratio at least 1.0")
    assert lines["story"].reason.endswith("above 1.01")


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (RULES[:1], "The gate passes: its one check."),
        (RULES[:2], "The gate is not decided: 1 of 2 checks is undecided, none fails."),
        (RULES, "The gate fails: 1 of 4 checks, 2 undecided."),
    ],
)
def test_the_verdict_stands_on_top(runs, rules, says):
    comparison = gated(runs, rules)
    assert gate_sentence(comparison.gate) == says
    assert headline(comparison).endswith(says)
    assert findings(comparison)[0].text == says


def test_page_markdown_and_terminal_hold_gate_and_scores(runs):
    comparison = gated(runs, RULES)
    page, text = render_html(comparison, runs), render_markdown(comparison)
    stream = io.StringIO()
    print_comparison(comparison, Console(file=stream, width=80, no_color=True))
    screen = stream.getvalue()
    assert max(map(len, screen.splitlines())) <= 80
    for form in (page, text, screen):
        assert "The gate fails: 1 of 4 checks, 2 undecided." in " ".join(form.split())
        assert "Mean of all tasks" in form
    for line in gate_lines(comparison):
        assert line.reason in page
        assert line.reason in text
    for score in score_lines(comparison):
        for pair in score.pairs:
            assert pair.interval in page
            assert pair.interval in text
            assert pair.interval in screen


def test_scores_say_what_they_leave_out(runs):
    comparison = gated(runs, RULES)
    score = score_lines(comparison)[0]
    assert list(score.left_out) == ["story"]
    assert score.pair("base", "adapter").interval.count(" to ") == 1
    assert score.pair("adapter", "base") is None
    assert "Mean of all tasks leaves out story (" in render_html(comparison, runs)
