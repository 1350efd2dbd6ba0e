"""Controls are told in words, and a failed one cannot be missed."""

from __future__ import annotations

from lora_eval.compare import compare_loaded
from lora_eval.reports.controls import controls
from lora_eval.reports.html import render_html
from lora_eval.reports.markdown import render_markdown
from tests.simulated import make_runs


def test_controls_in_words_checks_first():
    record = {
        "seconds": 1.25,
        "identity": {"items": 112, "differences": 0, "passed": True},
        "mine": {"passed": False, "largest_gap": 0.25},
    }
    runs = make_runs(n=3, arms=("base", "adapter"))
    comparison = compare_loaded(runs, controls=record)
    found = controls(comparison)
    assert [(line.passed, line.text) for line in found] == [
        (True, "items 112, differences 0"),
        (False, "largest gap 0.25"),
        (None, "1.25"),
    ]
    assert found[0].name == "Base against itself through an adapter that does nothing"
    assert "- mine: FAILED; largest gap 0.25" in render_markdown(comparison)
    assert 'badge worse"><span aria-hidden="true">▼</span> failed</span> largest gap 0.25' in render_html(
        comparison, runs
    )


def test_no_controls_is_said():
    runs = make_runs(n=3, arms=("base", "adapter"))
    assert "No control was recorded" in render_markdown(compare_loaded(runs))
