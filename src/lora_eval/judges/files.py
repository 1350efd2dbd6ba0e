"""Rows of JSON files, plain or gzip: lists, or JSON lines; each with its place, every fault told at once."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lora_eval.errors import InputError

MOST_PROBLEMS = 1_000
_GZIP = b"\x1f\x8b"
Row = TypeVar("Row")


@dataclass(slots=True)
class Problems:
    """Faults found so far, one line for each with its file and place."""

    lines: list[str] = field(default_factory=list)

    def add(self, path: Path, place: str, fault: str) -> None:
        """Note one fault."""
        self.lines.append(f"{path}: {place}: {fault}" if place else f"{path}: {fault}")

    def check(self) -> None:
        """Raise InputError with every fault, if there is one."""
        if self.lines:
            shown = self.lines[:MOST_PROBLEMS]
            more = len(self.lines) - len(shown)
            raise InputError("\n".join([*shown, *([f"and {more} more faults"] if more else [])]))


@dataclass(frozen=True, slots=True)
class PlacedRow:
    """One row of a file; `place` is `line N` or `row N`, from 1."""

    path: Path
    place: str
    values: dict[str, Any]


def read_rows(path: Path, problems: Problems) -> list[PlacedRow]:
    """Return the file's rows: the items of a JSON list, or one JSON object a line.

    Lines end at a line feed only: answers hold U+2028 and U+0085. What cannot be read is added to `problems`.
    """
    text = _read_text(path, problems)
    if text is None:
        return []
    listed = text.lstrip().startswith("[")
    values = _json_list(path, text, problems) if listed else _json_lines(path, text, problems)
    rows = []
    for place, value in values:
        if isinstance(value, dict):
            rows.append(PlacedRow(path, place, value))
        else:
            problems.add(path, place, f"expected an object with keys, got {type(value).__name__}")
    return rows


def parse_rows(
    paths: Iterable[Path],
    parse: Callable[[PlacedRow, Problems], Row | None],
    hint: Callable[[Sequence[str]], str],
) -> list[Row]:
    """Return what `parse` makes of each row of all files.

    `parse` adds faults to its second argument and returns None. Where no row of a file can be read, `hint` is
    given the keys of its first row and says what the file seems to be.

    Raises:
        InputError: with every fault of all files.
    """
    problems, parsed = Problems(), []
    for path in paths:
        rows = read_rows(path, problems)
        found, faults = [], Problems()
        for row in rows:
            value = parse(row, faults)
            if value is not None:
                found.append(value)
        advice = hint(list(rows[0].values)) if rows and not found else ""
        if advice:
            problems.add(path, "", f"{advice} (first fault: {faults.lines[0].removeprefix(f'{path}: ')})")
        else:
            problems.lines += faults.lines
        parsed += found
    problems.check()
    return parsed


def take(row: PlacedRow, key: str, kinds: tuple[type, ...], expected: str, problems: Problems) -> Any:
    """Return `row[key]` if it is of the kinds, else None with the fault noted. True is no number."""
    if key not in row.values:
        problems.add(row.path, row.place, f"missing key '{key}'")
        return None
    value = row.values[key]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        problems.add(row.path, row.place, f"{key}: expected {expected}, got {shown}")
        return None
    return value


def clean_text(text: str) -> str:
    """Return the text with U+FFFD for halves of surrogate pairs: JSON can hold them, UTF-8 cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _read_text(path: Path, problems: Problems) -> str | None:
    try:
        content = path.read_bytes()
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        problems.add(path, "", "no such file")
    except (OSError, EOFError, zlib.error) as error:
        problems.add(path, "", f"cannot be read: {getattr(error, 'strerror', None) or error}")
    except UnicodeDecodeError as error:
        problems.add(path, f"byte {error.start + 1}", "is not UTF-8 text")
    else:
        if text.strip():
            return text
        problems.add(path, "", "holds no row")
    return None


def _json_list(path: Path, text: str, problems: Problems) -> list[tuple[str, Any]]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        problems.add(path, _mark(error), f"is not valid JSON: {_said(error)}")
        return []
    if not values:
        problems.add(path, "", "holds no row")
    return [(f"row {number}", value) for number, value in enumerate(values, 1)]


def _json_lines(path: Path, text: str, problems: Problems) -> list[tuple[str, Any]]:
    values: list[tuple[str, Any]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values.append((f"line {number}", json.loads(line)))
        except (ValueError, RecursionError) as error:
            column = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            problems.add(path, f"line {number}{column}", f"is not valid JSON: {_said(error)}")
    return values


def _mark(error: Exception) -> str:
    return f"line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""


def _said(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
