"""The gate in plain words: what was asked, what was found, and why."""

from __future__ import annotations

from dataclasses import dataclass

from lora_eval.records import Comparison, GateCheck, GateResult
from lora_eval.reports.numbers import DASH, MINUS, about_text, fixed, plain, supported_decimals

# Verdict of a gate -> the mark that all tables use for it.
MARKS = {"PASS": "not_worse", "FAIL": "worse", "INCONCLUSIVE": "inconclusive"}


@dataclass(frozen=True, slots=True)
class CheckLine:
    """One rule on one task and pair of arms, in words; `found` is the gain or ratio that was measured."""

    rule: str
    task: str
    metric: str
    pair: str
    found: str
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
    undecided = counts["INCONCLUSIVE"]
    verb = "is" if undecided == 1 else "are"
    return f"The gate is not decided: {undecided} of {total} checks {verb} undecided, none fails."


def _line(check: GateCheck) -> CheckLine:
    own = f"the {check.measure} "  # how the record states its bounds: said here with their digits
    bounds = _bounds(check)
    others = [reason for reason in check.reasons if not bounds or not reason.startswith(own)]
    more = [f"about {about_text(check.n_needed)} items would decide"] if check.n_needed else []
    decimals = supported_decimals(check.low, check.high)
    found = DASH if check.estimate is None else plain(check.estimate)
    if check.estimate is not None and decimals is not None:
        found = fixed(check.estimate, decimals, signed=check.measure == "gain")
    return CheckLine(
        rule=f"{check.condition} {check.limit:g}",
        task=check.task,
        metric=check.metric if check.filter == "none" else f"{check.metric}, {check.filter}",
        pair=f"{check.b} against {check.a}",
        found=found,
        n=check.n,
        verdict=check.verdict,
        mark=MARKS[check.verdict],
        reason="; ".join([*([bounds] if bounds else []), *others, *more]),
    )


def bound_texts(check: GateCheck) -> tuple[str, str] | None:
    """Both bounds with the digits they support, never printed as the threshold; None where one is missing."""
    decimals = supported_decimals(check.low, check.high)
    if check.low is None or check.high is None or decimals is None:
        return None
    signed = check.measure == "gain"
    low, high = (
        fixed(end, decimals, signed=signed, apart=check.threshold) for end in (check.low, check.high)
    )
    return low, high


def _bounds(check: GateCheck) -> str:
    """Where the true value lies, against the threshold; empty where nothing bounds it on both sides."""
    found = bound_texts(check)
    if found is None or check.low is None or check.high is None:
        return ""
    low, high = found
    threshold = f"{check.threshold:{'+' if check.measure == 'gain' else ''}g}".replace("-", MINUS)
    if check.low > check.threshold:
        return f"{check.measure} at least {low}, above {threshold}"
    if check.high < check.threshold:
        return f"{check.measure} at most {high}, below {threshold}"
    return f"{check.measure} between {low} and {high}, so {threshold} is not decided"
