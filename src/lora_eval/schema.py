"""Strict loading and atomic writing of records.

A file with faults gives one RecordError that lists every fault with its place and, for a misspelt key,
the nearest known one. Writing is whole or not at all: temporary file in the same folder, fsync, rename.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, Union, get_args, get_origin

from lora_eval.errors import OutputError, RecordError

# pydantic is imported where it is used: listing plugins reads YAML and needs no records (0.05 s of a start).
if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

RecordType = TypeVar("RecordType", bound="BaseModel")

_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")

# What pydantic's kinds of fault expect, in words.
_EXPECTED = {
    "model_type": "a mapping with keys",
    "dict_type": "a mapping with keys",
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
}


def parse_record(data: Any, model: type[RecordType], source: str) -> RecordType:
    """Return `data` as a `model`.

    Raises:
        RecordError: with every problem at once; `source` is the file or place named in each line.
    """
    from pydantic import ValidationError

    if not isinstance(data, Mapping):
        raise RecordError(source, [f"expected a mapping with keys, got {type(data).__name__}"])
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise RecordError(source, describe_problems(error, model)) from None


def load_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that the YAML file holds. `1e-4` is a number, as in YAML 1.2.

    Raises:
        RecordError: the file is missing, is not YAML, has a key twice, or is not a mapping.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise RecordError(str(path), ["no such file"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(str(path), [f"cannot be read: {error}"]) from error
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise RecordError(str(path), [f"expected a mapping with keys, got {type(data).__name__}"])
    return data


def parse_yaml(text: str, source: str) -> Any:
    """Return the value that YAML text holds, read as `load_yaml` reads a file.

    Raises:
        RecordError: it is not YAML, or has a key twice; `source` names the text's place.
    """
    import yaml

    try:
        return yaml.load(text, Loader=_yaml_loader())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecordError(source, [f"is not valid YAML{where}: {error.problem}"]) from None
    except yaml.YAMLError as error:
        raise RecordError(source, [f"is not valid YAML: {' '.join(str(error).split())}"]) from None


def dump_yaml(data: Any) -> str:
    """Return JSON-like data as YAML text, keys in their order; `parse_yaml` gives the same data back."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes text that our loader would read as a number."""

    Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
    text = yaml.dump(
        data, Dumper=Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=100
    )
    return str(text)


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
    # Not mkstemp: its files are 0600, while a record should be as readable as the umask says.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def describe_problems(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return one line for each fault of a validation, in the schema's order."""
    faults = [_Fault.of(dict(problem), model) for problem in error.errors(include_url=False)]
    # Where a value may have several forms, pydantic reports a fault for each; the form meant is the one
    # whose kind fits, and where none fits one line names them all.
    wrong_kind = [fault for fault in faults if fault.union == fault.place and fault.expected]
    fitting = {fault.union for fault in faults if fault not in wrong_kind}
    lines = []
    for fault in faults:
        if fault not in wrong_kind or fault.union is None:
            lines.append(fault.line)
        elif fault.union not in fitting:
            forms = " or ".join(other.expected for other in wrong_kind if other.union == fault.union)
            lines.append(f"{fault.place}: expected {forms}, got {fault.found}")
    return list(dict.fromkeys(lines))


def suggest(name: str, known: Sequence[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known name, or an empty string."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


class _Fault(NamedTuple):
    """One fault: its place, the place of the union it is in (None: in none), and how to say it."""

    place: str
    union: str | None
    expected: str
    found: str
    line: str

    @classmethod
    def of(cls, problem: dict[str, Any], model: type[BaseModel]) -> _Fault:
        steps = list(_steps(model, problem["loc"]))
        place = _place([part for part, tag, _ in steps if not tag])
        tags = [i for i, (_, tag, _) in enumerate(steps) if tag]
        union = _place([part for part, tag, _ in steps[: tags[-1]] if not tag]) if tags else None
        expected = _EXPECTED.get(problem["type"], "")
        found = _shown(problem.get("input"))
        if problem["type"] == "extra_forbidden":
            known = _keys(steps[-1].owner)
            line = f"unknown key '{place}'{suggest(str(problem['loc'][-1]), known)}"
        elif problem["type"] == "missing":
            line = f"missing key '{place}'"
        else:
            message = problem["msg"].removeprefix("Value error, ")
            said = f"expected {expected}" if expected else f"{message[0].lower()}{message[1:]}"
            line = f"{place or 'file'}: {said}, got {found}"
        return cls(place, union, expected, found, line)


class _Step(NamedTuple):
    """One part of a fault's location; `tag`: it names the form of a union and is no key of the file."""

    part: int | str
    tag: bool
    owner: Any


def _steps(model: type[BaseModel], location: tuple[int | str, ...]) -> Iterator[_Step]:
    current: Any = model
    for part in location:
        forms = _forms(current)
        if len(forms) > 1:
            yield _Step(part, True, current)
            current = next((form for form in forms if getattr(form, "__name__", "") == part), None)
        else:
            owner = forms[0] if forms else None
            yield _Step(part, False, owner)
            current = _inside(owner, part)


def _forms(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, UnionType):
        return [form for form in get_args(annotation) if form is not NoneType]
    return [annotation]


def _inside(owner: Any, part: int | str) -> Any:
    from pydantic import BaseModel

    if isinstance(owner, type) and issubclass(owner, BaseModel):
        fields = {field.alias or name: field for name, field in owner.model_fields.items()}
        return fields[str(part)].annotation if part in fields else None
    arguments = get_args(owner)
    return arguments[1 if isinstance(part, str) and len(arguments) > 1 else 0] if arguments else None


def _keys(owner: Any) -> list[str]:
    from pydantic import BaseModel

    if isinstance(owner, type) and issubclass(owner, BaseModel):
        return [field.alias or name for name, field in owner.model_fields.items()]
    return []


def _place(parts: Sequence[int | str]) -> str:
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@cache
def _yaml_loader() -> Any:
    """A safe loader (in C where there is one) that refuses a key given twice, which YAML forbids and PyYAML
    takes silently, and that reads `1e-4` as a number, which PyYAML takes for text.
    """
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                    if key.value in seen:
                        raise yaml.constructor.ConstructorError(
                            problem=f"the key '{key.value}' is given twice", problem_mark=key.start_mark
                        )
                    seen.add(key.value)
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
    return Loader
