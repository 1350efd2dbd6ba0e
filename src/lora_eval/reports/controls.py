"""Controls in plain words: what was checked before any figure counted, and how it came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_eval.records import Comparison, ReferenceCheck

_REFERENCE = "reference"
# Names that `compare` records; any other control is shown under its own name.
_NAMES = {
    "identity": "Base against itself through an adapter that does nothing",
    "determinism": "Base scored twice",
    "judge": "Judge: base against its own second answers",
}


@dataclass(frozen=True, slots=True)
class Control:
    """One line: its name, whether it passed (None: it is no check), and its figures."""

    name: str
    passed: bool | None
    text: str


def controls(comparison: Comparison) -> list[Control]:
    """Return every control of the record, checks first."""
    found = [_control(name, value) for name, value in comparison.controls.items() if name != _REFERENCE]
    found += [Control("By lm-eval itself", None, reference_line(c)) for c in reference_checks(comparison)]
    return sorted(found, key=lambda control: control.passed is None)


def reference_line(check: ReferenceCheck) -> str:
    """Say in one line what the check found."""
    parts = []
    if check.max_difference is not None:
        relative = check.max_relative_difference or 0.0
        parts.append(
            f"{check.log_likelihoods} log-likelihoods differ by at most {check.max_difference:.2g} nats "
            f"({relative:.1e} of the value), {check.mean_difference:.2g} on average"
        )
    if check.choices:
        parts.append(f"{check.choice_flips} of {check.choices} choices flip")
    if check.texts:
        parts.append(f"{check.text_differences} of {check.texts} texts differ")
    if check.metrics:
        parts.append(f"{check.metric_flips} of {check.metrics} yes/no figures differ")
    rounded = "" if check.dtype == "float32" else f"; lm-eval itself rounds log-likelihoods to {check.dtype}"
    return f"{check.arm} in {check.dtype} against lm-eval's own model: {'; '.join(parts)}{rounded}"


def reference_checks(comparison: Comparison) -> list[ReferenceCheck]:
    """Return what `--check-reference` found, arm by arm."""
    found = comparison.controls.get(_REFERENCE, {})
    return [ReferenceCheck.model_validate(check) for check in found.values()]


def _control(name: str, value: Any) -> Control:
    label = _NAMES.get(name, name)
    if not isinstance(value, Mapping):
        return Control(label, None, _text(value))
    passed = value.get("passed")
    figures = ", ".join(f"{key} {_text(part)}" for key, part in value.items() if key != "passed")
    return Control(label, passed if isinstance(passed, bool) else None, figures.replace("_", " "))


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {_text(part)}" for key, part in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)  # noqa: RUF001
