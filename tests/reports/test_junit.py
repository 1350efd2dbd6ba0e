"""JUnit XML: what readers of it count is what the gate says, whatever stands in the names."""

from __future__ import annotations

from datetime import UTC, datetime
from xml.etree import ElementTree

import junitparser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_eval.records import Arm, Comparison, GateCheck, GateResult, GateRule
from lora_eval.reports.junit import render_junit

WHEN = datetime(2026, 11, 26, 12, 0, 5, tzinfo=UTC)


def make_check(
    verdict="PASS", task="skill", reasons=("the gain is at least +0.01 (95 %), above -0.02",), **changes
):
    values = {
        "rule": 0, "task": task, "metric": "acc", "filter": "none", "a": "base", "b": "tuned",
        "condition": "max_drop", "limit": 0.02, "measure": "gain", "threshold": -0.02,
        "estimate": 0.05, "low": 0.01, "high": 0.09, "level": 0.95, "method": "exact", "n": 200,
        "invalid": 0, "verdict": verdict, "reasons": tuple(reasons),
    }  # fmt: skip
    return GateCheck(**(values | changes))


def make_result(*checks, verdict="FAIL"):
    """A comparison that holds nothing but the gate's result."""
    rule = GateRule(task="*", max_drop=0.02)
    gate = GateResult(verdict=verdict, level=0.95, rules=(rule,), checks=checks, source="gate.yaml")
    arms = (Arm(name="base", kind="base", fingerprint=None, path="base"),)
    return Comparison(arms=arms, suite={}, tasks=(), gate=gate)


ALL = make_result(
    make_check(),
    make_check("FAIL", "memory", ["too low"], low=None, high=None),
    make_check("INCONCLUSIVE", "style", ["too few"], low=None, high=None),
)


def test_a_reader_of_junit_finds_each_check_once():
    (suite,) = junitparser.JUnitXml.fromstring(render_junit(ALL, when=WHEN).encode())
    assert (suite.tests, suite.failures, suite.skipped, suite.errors) == (3, 1, 1, 0)
    cases = {case.name: case for case in suite}
    assert list(cases) == [f"rules[0] max_drop 0.02: {task} acc" for task in ("skill", "memory", "style")]
    passed, failed, undecided = cases.values()
    assert passed.is_passed
    (failure,) = failed.result
    assert (type(failure), failure.message, failure.type) == (junitparser.Failure, "too low", "fail")
    (skipped,) = undecided.result
    assert (type(skipped), skipped.message) == (junitparser.Skipped, "too few")
    assert {case.classname for case in suite} == {"gate.tuned"}


def test_without_a_gate_there_is_no_case():
    text = render_junit(ALL.model_copy(update={"gate": None}), when=WHEN)
    (suite,) = junitparser.JUnitXml.fromstring(text.encode())
    assert (suite.tests, list(suite)) == (0, [])


def test_under_strict_an_undecided_check_is_a_failure():
    (suite,) = junitparser.JUnitXml.fromstring(render_junit(ALL, when=WHEN, strict=True).encode())
    assert (suite.failures, suite.skipped) == (2, 0)
    assert [case.result[0].type for case in suite if case.result] == ["fail", "inconclusive"]


# What the two common schemas ask of each element (windyroad/JUnit-Schema; jenkinsci/xunit-plugin, junit-10).
REQUIRED = {
    "testsuite": "name package id timestamp hostname tests failures errors time",
    "testcase": "name classname time",
    "property": "name value",
    "failure": "message type",
    "skipped": "message",
}
CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"properties", "testcase", "system-out", "system-err"},
    "properties": {"property"},
    "testcase": {"failure", "skipped"},
}


@pytest.mark.parametrize("strict", [False, True])
def test_elements_and_attributes_are_those_of_both_schemas(strict):
    root = ElementTree.fromstring(render_junit(ALL, when=WHEN, strict=strict))
    assert (root.tag, root.attrib) == ("testsuites", {})  # the Ant schema allows it no attribute
    for element in root.iter():
        assert {child.tag for child in element} <= CHILDREN.get(element.tag, set())
        assert set(REQUIRED.get(element.tag, "").split()) <= set(element.attrib)
    (suite,) = root
    order = [child.tag for child in suite]
    assert order == ["properties", *["testcase"] * 3, "system-out", "system-err"]
    assert suite.get("timestamp") == "2026-11-26T12:00:05"


@settings(deadline=None, max_examples=60)
@given(st.text(st.characters(codec=None), min_size=1, max_size=20), st.text(max_size=20))
def test_any_name_gives_xml_that_can_be_read(name, reason):
    result = make_result(make_check("FAIL", name, [reason], b=name))
    ElementTree.fromstring(render_junit(result, when=WHEN).encode("utf-8"))
