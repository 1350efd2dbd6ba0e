"""Strict loading and atomic writing of records.

A file with faults gives one RecordError that lists every fault with its place and, for a misspelt key,
the nearest known one. Writing is whole or not at all: temporary file in the same folder, fsync, rename.
"""

from __future__ import annotations

import difflib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from lora_eval.errors import OutputError, RecordError

RecordType = TypeVar("RecordType", bound=BaseModel)


def parse_record(data: Any, model: type[RecordType], source: str) -> RecordType:
    """Return `data` as a `model`.

    Raises:
        RecordError: with every problem at once; `source` is the file or place named in each line.
    """
    if not isinstance(data, Mapping):
        raise RecordError(source, [f"expected a mapping with keys, got {type(data).__name__}"])
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise RecordError(source, describe_problems(error, model)) from None


def load_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that the YAML file holds.

    Raises:
        RecordError: the file is missing, is not YAML, or is not a mapping.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        data = yaml.load(path.read_text("utf-8"), Loader=loader)
    except FileNotFoundError:
        raise RecordError(str(path), ["no such file"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(str(path), [f"cannot be read: {error}"]) from error
    except yaml.YAMLError as error:
        raise RecordError(str(path), [f"is not valid YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(data, dict):
        raise RecordError(str(path), [f"expected a mapping with keys, got {type(data).__name__}"])
    return data


def load_json(path: Path) -> Any:
    """Return what the JSON file holds.

    Raises:
        RecordError: the file is missing or is not JSON (with line and column).
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RecordError(str(path), ["no such file"]) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise RecordError(str(path), [f"is not valid JSON at {where}: {error.msg}"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(str(path), [f"cannot be read: {error}"]) from error


def read_record(path: Path, model: type[RecordType]) -> RecordType:
    """Return the record stored in a `.json` or `.yaml` file (RecordError where it breaks the schema)."""
    data = load_json(path) if path.suffix == ".json" else load_yaml(path)
    return parse_record(data, model, str(path))


def dump_record(record: BaseModel) -> str:
    """Return the record as indented JSON text with its stored key names and a final newline."""
    data = record.model_dump(mode="json", by_alias=True)
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_record(path: Path, record: BaseModel) -> None:
    """Store the record at `path`, whole or not at all."""
    write_text(path, dump_record(record))


def write_text(path: Path, text: str) -> None:
    """Store UTF-8 text at `path`, whole or not at all; its folder is made if needed."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Store bytes at `path`: a temporary file beside it, fsync, rename.

    Raises:
        OutputError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp gives 0600; a report or record should be as readable as its folder allows.
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def describe_problems(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return one line for each fault of a validation, in the order of the file."""
    return [_describe(dict(problem), model) for problem in error.errors(include_url=False)]


def suggest(name: str, known: list[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known name, or an empty string."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def _describe(problem: dict[str, Any], model: type[BaseModel]) -> str:
    location = problem["loc"]
    place = _place(location)
    kind = problem["type"]
    if kind == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        return f"unknown key '{place}'{suggest(str(location[-1]), known)}"
    if kind == "missing":
        return f"missing key '{place}'"
    found = problem.get("input")
    shown = repr(found) if len(repr(found)) <= 60 else repr(found)[:57] + "..."
    return f"{place or 'file'}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {shown}"


def _place(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part and not part[0].isupper() and not part.startswith("function"):
            text += f".{part}" if text else part
    return text


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    current: type[BaseModel] = model
    for part in location:
        if isinstance(part, str) and part in current.model_fields:
            nested = _nested_models(current.model_fields[part].annotation)
            if not nested:
                return []
            current = nested[0]
    return [field.alias or name for name, field in current.model_fields.items()]


def _nested_models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _nested_models(part)]
