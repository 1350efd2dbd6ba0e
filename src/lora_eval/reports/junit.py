"""The gate as JUnit XML, which GitHub, GitLab and Jenkins show beside the tests: one case for each check.

The elements and attributes are those that both the Ant schema (windyroad/JUnit-Schema) and Jenkins' own
(xunit-plugin, junit-10.xsd) accept.
"""

from __future__ import annotations

import re
from datetime import datetime
from xml.etree import ElementTree

from lora_eval.records import Comparison, GateCheck
from lora_eval.reports.gate_terminal import verdict_line
from lora_eval.reports.gates import CheckLine, gate_lines

# What XML 1.0 cannot hold, not even escaped (https://www.w3.org/TR/xml/#charsets).
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(comparison: Comparison, *, when: datetime, strict: bool = False) -> str:
    """Return the XML text of the record's gate; without one it holds no case.

    An undecided check is skipped, with its reason, and a failure where `strict`.
    """
    gate = comparison.gate
    checks = gate.checks if gate else ()
    kinds = [_kind(check, strict=strict) for check in checks]
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        name="lora-eval gate",
        package="lora_eval",
        id="0",
        timestamp=when.strftime("%Y-%m-%dT%H:%M:%S"),
        hostname="localhost",
        tests=str(len(checks)),
        failures=str(kinds.count("failure")),
        errors="0",
        skipped=str(kinds.count("skipped")),
        time="0",
    )
    properties = ElementTree.SubElement(suite, "properties")
    if gate:
        for name, value in (("verdict", gate.verdict), ("level", f"{gate.level:g}"), ("gate", gate.source)):
            ElementTree.SubElement(properties, "property", name=name, value=_clean(value or ""))
    for check, line, kind in zip(checks, gate_lines(comparison), kinds, strict=True):
        _add_case(suite, check, line, kind)
    said = (verdict_line(comparison), *(gate.notes if gate else ()))
    ElementTree.SubElement(suite, "system-out").text = _clean("\n".join(said))
    ElementTree.SubElement(suite, "system-err")
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _kind(check: GateCheck, *, strict: bool) -> str:
    if check.verdict == "PASS":
        return "passed"
    return "failure" if check.verdict == "FAIL" or strict else "skipped"


def _add_case(suite: ElementTree.Element, check: GateCheck, line: CheckLine, kind: str) -> None:
    case = ElementTree.SubElement(
        suite,
        "testcase",
        name=_clean(f"rules[{check.rule}] {line.rule}: {line.task} {line.metric}"),
        classname=_clean(f"gate.{check.b}"),
        time="0",
    )
    if kind == "passed":
        return
    told = ElementTree.SubElement(case, kind, message=_clean(line.reason))
    if kind == "failure":
        told.set("type", check.verdict.lower())
    told.text = _clean(f"{line.pair}, {line.n} items: found {line.found}; {line.reason}")


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
