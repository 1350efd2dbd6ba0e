"""The gate in plain words: what was asked, what was found, and why."""

from __future__ import annotations

from dataclasses import dataclass

from lora_eval.records import Comparison, GateCheck, GateResult
from lora_eval.reports.numbers import DASH, fixed, plain, supported_decimals

# Verdict of a gate -> the mark that all tables use for it.
MARKS = {"PASS": "not_worse", "FAIL": "worse", "INCONCLUSIVE": "inconclusive"}


@dataclass(frozen=True, slots=True)
class CheckLine:
    """One rule on one task and pair of arms, in words."""

    rule: str
    task: str
    pair: str
    found: str
    bounds: str
    n: int
    verdict: str
    mark: str
    reason: str


def gate_lines(comparison: Comparison) -> list[CheckLine]:
    """Return every check of the record's gate; none where there is no gate."""
    gate = comparison.gate
    if gate is None:
        return []
    return [_line(check) for check in gate.checks]


def gate_sentence(gate: GateResult) -> str:
    """Say what the gate decided, and on how many checks."""
    counts = {word: sum(check.verdict == word for check in gate.checks) for word in MARKS}
    total = len(gate.checks)
    if gate.verdict == "PASS":
        return f"The gate passes: {'its one check' if total == 1 else f'all {total} checks'}."
    open_ones = f", {counts['INCONCLUSIVE']} undecided" if counts["INCONCLUSIVE"] else ""
    if gate.verdict == "FAIL":
        return f"The gate fails: {counts['FAIL']} of {total} checks{open_ones}."
    return f"The gate is not decided: {counts['INCONCLUSIVE']} of {total} checks are undecided, none fails."


def _line(check: GateCheck) -> CheckLine:
    metric = check.metric if check.filter == "none" else f"{check.metric}, {check.filter}"
    signed = check.measure == "gain"
    decimals = supported_decimals(check.low, check.high)
    values = [
        DASH if value is None else plain(value) if decimals is None else fixed(value, decimals, signed=signed)
        for value in (check.estimate, check.low, check.high)
    ]
    known = check.low is not None or check.high is not None
    more = f"about {check.n_needed:,} items would decide" if check.n_needed else ""
    return CheckLine(
        rule=f"{check.condition} {check.limit:g}",
        task=f"{check.task} ({metric})",
        pair=f"{check.b} against {check.a}",
        found=values[0],
        bounds=f"above {values[1]}, below {values[2]}" if known else DASH,
        n=check.n,
        verdict=check.verdict,
        mark=MARKS[check.verdict],
        reason="; ".join([*check.reasons, *([more] if more else [])]),
    )
