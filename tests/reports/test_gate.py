"""The gate as a screen of text: counts, bounds and reasons are those of the record."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lora_eval.reports.gate import gate_rows, gate_sentence, print_gate
from tests.reports.test_junit import ALL, make_check, make_result


def printed(result, width=80):
    console = Console(file=io.StringIO(), width=width, no_color=True)
    print_gate(result, console)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("verdicts", "overall", "said"),
    [
        (["PASS"], "PASS", "Gate: PASS, its check holds"),
        (["PASS", "PASS"], "PASS", "Gate: PASS, all 2 checks hold"),
        (["FAIL"], "FAIL", "Gate: FAIL, 1 failed of 1 check"),
        (["PASS", "FAIL", "INCONCLUSIVE"], "FAIL", "Gate: FAIL, 1 failed and 1 undecided of 3 checks"),
        (["PASS", "INCONCLUSIVE"], "INCONCLUSIVE", "Gate: INCONCLUSIVE, 1 undecided of 2 checks"),
    ],
)
def test_sentence(verdicts, overall, said):
    result = make_result(*map(make_check, verdicts), verdict=overall)
    assert gate_sentence(result) == f"{said} (bounds one-sided at 95 %)."


def test_screen_fits_80_columns_and_gives_the_reasons_of_what_did_not_pass():
    ratio = {
        "condition": "max_perplexity_ratio", "limit": 1.05, "measure": "ratio", "threshold": 1.05,
        "estimate": 1.041, "low": 1.0351, "high": 1.0479,
    }  # fmt: skip
    long = make_check("FAIL", "a_task_with_a_rather_long_name_of_its_own", ["because " * 20], n_needed=2105)
    text = printed(make_result(*ALL.checks, long, make_check("PASS", "story", **ratio)))
    assert max(map(len, text.splitlines())) <= 80
    assert "1.041" in text and "1.035 to 1.048" in text
    assert "too low" in text and "too few" in text
    assert "the gain is at least" not in text
    assert "about 2,105 items would probably decide it" in text


def test_every_arm_has_its_own_table():
    text = printed(make_result(make_check(), make_check("FAIL", b="merged")))
    assert text.index("tuned against base") < text.index("merged against base")


def test_a_metric_is_named_where_a_task_has_two():
    result = make_result(make_check(), make_check(metric="em", filter="strict"), make_check(task="other"))
    assert [row.task for row in gate_rows(result)] == ["skill acc", "skill em,strict", "other"]


def test_what_is_undefined_is_a_dash():
    (row,) = gate_rows(make_result(make_check("INCONCLUSIVE", estimate=None, low=None, high=None)))
    assert (row.seen, row.bounds) == ("–", "–")  # noqa: RUF001
