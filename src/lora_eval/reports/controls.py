"""Controls in plain words: what was checked before any figure counted, and how it came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_eval.records import Comparison

# Names that `compare` records; any other control is shown under its own name.
_NAMES = {
    "identity": "Base against itself through an adapter that does nothing",
    "determinism": "Base scored twice",
}


@dataclass(frozen=True, slots=True)
class Control:
    """One line: its name, whether it passed (None: it is no check), and its figures."""

    name: str
    passed: bool | None
    text: str


def controls(comparison: Comparison) -> list[Control]:
    """Return every control of the record, checks first."""
    found = [_control(name, value) for name, value in comparison.controls.items()]
    return sorted(found, key=lambda control: control.passed is None)


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
