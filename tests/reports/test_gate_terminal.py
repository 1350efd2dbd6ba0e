"""The gate as a screen of text: counts, bounds and reasons are those of the record."""

from __future__ import annotations

import io

from rich.console import Console

from lora_eval.reports.gate_terminal import print_gate, verdict_line
from tests.reports.test_junit import ALL, make_check, make_result


def printed(result, width=80):
    console = Console(file=io.StringIO(), width=width, no_color=True)
    print_gate(result, console)
    return console.file.getvalue()


def test_verdict_is_the_first_word():
    assert verdict_line(ALL) == "FAIL. The gate fails: 1 of 3 checks, 1 undecided."
    assert verdict_line(make_result(make_check(), verdict="PASS")).startswith("PASS. The gate passes")
    assert verdict_line(ALL.model_copy(update={"gate": None})) == ""


def test_screen_fits_80_columns_and_gives_the_reasons_of_what_did_not_pass():
    ratio = {
        "condition": "max_perplexity_ratio", "limit": 1.05, "measure": "ratio", "threshold": 1.05,
        "estimate": 1.041, "low": 1.0351, "high": 1.0479,
    }  # fmt: skip
    long = make_check("FAIL", "a_task_with_a_rather_long_name_of_its_own", ["because " * 20], n_needed=2105)
    text = printed(make_result(*ALL.gate.checks, long, make_check("PASS", "story", **ratio)))
    assert max(map(len, text.splitlines())) <= 80
    assert "1.041" in text and "1.035 to 1.048" in text
    assert "too low" in text and "too few" in text
    assert "the gain is at least" not in text
    assert "about 2,200 items would decide" in " ".join(text.split())


def test_a_bound_is_not_printed_as_its_threshold():
    """It passed: with the two decimals of its interval it would read as if it had not."""
    near = make_check(threshold=-0.05, limit=0.05, estimate=-0.01, low=-0.0496, high=0.03)
    text = printed(make_result(near, verdict="PASS"))
    assert "−0.0496 to +0.03" in text  # noqa: RUF001


def test_every_arm_has_its_own_table():
    text = printed(make_result(make_check(), make_check("FAIL", b="merged")))
    assert text.index("tuned against base") < text.index("merged against base")


def test_a_metric_is_named_where_a_task_has_two():
    result = make_result(make_check(), make_check(metric="em", filter="strict"), make_check(task="other"))
    text = printed(result)
    assert "skill acc" in text and "skill em, strict" in text
    assert "other acc" not in text


def test_what_is_undefined_is_a_dash():
    text = printed(make_result(make_check("INCONCLUSIVE", estimate=None, low=None, high=None)))
    assert next(line for line in text.splitlines() if "skill" in line).count("–") == 2  # noqa: RUF001


def test_nothing_is_printed_without_a_gate():
    assert printed(ALL.model_copy(update={"gate": None})) == ""
