"""The gate as JUnit XML, which GitHub, GitLab and Jenkins show beside the tests: one case for each check.

The elements and attributes are those that both the Ant schema (windyroad/JUnit-Schema) and Jenkins' own
(xunit-plugin, junit-10.xsd) accept.
"""

from __future__ import annotations

import re
from datetime import datetime
from xml.etree import ElementTree

from lora_eval.records import GateResult
from lora_eval.reports.gate import GateRow, gate_rows, gate_sentence

# What XML 1.0 cannot hold, not even escaped (https://www.w3.org/TR/xml/#charsets).
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(result: GateResult, *, when: datetime, strict: bool = False) -> str:
    """Return the XML text; an undecided check is skipped, with its reason, and a failure where `strict`."""
    rows = gate_rows(result)
    kinds = [_kind(row, strict=strict) for row in rows]
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        name="lora-eval gate",
        package="lora_eval",
        id="0",
        timestamp=when.strftime("%Y-%m-%dT%H:%M:%S"),
        hostname="localhost",
        tests=str(len(rows)),
        failures=str(kinds.count("failure")),
        errors="0",
        skipped=str(kinds.count("skipped")),
        time="0",
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (("verdict", result.verdict), ("level", f"{result.level:g}"), ("gate", result.source)):
        ElementTree.SubElement(properties, "property", name=name, value=_clean(value or ""))
    for row, kind in zip(rows, kinds, strict=True):
        _add_case(suite, row, kind)
    ElementTree.SubElement(suite, "system-out").text = _clean(
        "\n".join((gate_sentence(result), *result.notes))
    )
    ElementTree.SubElement(suite, "system-err")
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _kind(row: GateRow, *, strict: bool) -> str:
    if row.verdict == "PASS":
        return "passed"
    return "failure" if row.verdict == "FAIL" or strict else "skipped"


def _add_case(suite: ElementTree.Element, row: GateRow, kind: str) -> None:
    case = ElementTree.SubElement(
        suite,
        "testcase",
        name=_clean(f"{row.rule} {row.asked}: {row.task}"),
        classname=_clean(f"gate.{row.arm}"),
        time="0",
    )
    if kind == "passed":
        return
    told = ElementTree.SubElement(case, kind, message=_clean("; ".join(row.reasons)))
    if kind == "failure":
        told.set("type", row.verdict.lower())
    told.text = _clean(f"asked: {row.asked}; seen: {row.seen}; bounds: {row.bounds}")


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
