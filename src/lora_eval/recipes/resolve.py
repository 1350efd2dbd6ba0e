"""A recipe by name or path: its file, what it extends, and what the command line changes.

Values are merged key by key along `extends:`, the recipe itself last and overrides after it; each value
remembers where it came from. A section set to null in a file drops what was inherited.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_eval.errors import InputError, RecordError
from lora_eval.recipes.signatures import section_fields, section_problems
from lora_eval.records import Recipe
from lora_eval.registry import find_plugin, load_plugin, looks_like_path
from lora_eval.resources import resolve_path
from lora_eval.schema import dump_yaml, load_yaml, parse_record, parse_yaml

COMMAND_LINE = "command line"
SECTIONS = ("model", "lora", "quantization", "training")
# Not inherited: they say something about one recipe only.
_OWN = ("schema", "name", "summary", "extends", "hardware")
_MAPPINGS = (*SECTIONS, "data", "family", "hardware")


@dataclass(frozen=True, slots=True)
class Layer:
    """One recipe of an `extends` chain as it is written: `origin` is its file or package."""

    origin: str
    folder: Path
    values: dict[str, Any]
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class ResolvedRecipe:
    """A recipe with everything it extends and every override in it.

    `origins` says for each key path (`training.learning_rate`) which file, package or override the value
    comes from; keys that are not in it have the record's default. `folder` is what relative data files
    are relative to.
    """

    recipe: Recipe
    origins: dict[str, str] = field(default_factory=dict)
    folder: Path = field(default_factory=Path.cwd)

    def data_files(self) -> list[Path]:
        """Return the training files, found (InputError where one is missing)."""
        return [resolve_path(name, self.folder) for name in self.recipe.data.files]

    def eval_files(self) -> list[Path]:
        """Return the evaluation files, found (InputError where one is missing)."""
        return [resolve_path(name, self.folder) for name in self.recipe.data.eval_files]

    def to_yaml(self) -> str:
        """Return a recipe file that stands alone: nothing extended, overrides included."""
        data = self.recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        data.pop("extends", None)
        return dump_yaml({"schema": 1, **data})


def load_recipe(name_or_path: str, overrides: Sequence[str] = (), *, check: bool = True) -> ResolvedRecipe:
    """Return the recipe with what it extends, then `overrides` (`section.key=value`, values as in YAML).

    `check` compares the sections with the installed libraries, which imports them (seconds).

    Raises:
        PluginError: no recipe of that name (with the nearest one), defined twice, or broken.
        RecordError: every fault of the files and overrides at once, each with its file and key path.
    """
    layers = find_layers(name_or_path)
    layers += override_layers(overrides)
    problems = [fault for layer in layers for fault in _layer_problems(layer, check)]
    if problems:
        raise _grouped(problems)
    values, origins = merge_layers(layers)
    recipe = parse_record(values, Recipe, layers[0].origin)
    return ResolvedRecipe(recipe, origins, _leaf(layers).folder)


def find_layers(name_or_path: str) -> list[Layer]:
    """Return the recipe's layers, the one that extends nothing first and the recipe itself last.

    Raises:
        PluginError, RecordError: a recipe of the chain cannot be found or read, or the chain is a circle.
    """
    layers: list[Layer] = []
    seen: list[str] = []
    wanted: str | None = name_or_path
    folder = Path.cwd()
    while wanted is not None:
        layer = _read_layer(wanted, folder, extended_by=layers[0].origin if layers else None)
        if layer.origin in seen:
            chain = " -> ".join([*seen[seen.index(layer.origin) :], layer.origin])
            raise RecordError(layers[0].origin, [f"extends: goes round in a circle: {chain}"])
        seen.append(layer.origin)
        layers.insert(0, layer)
        wanted, folder = layer.values.get("extends"), layer.folder
        if wanted is not None and not isinstance(wanted, str):
            raise RecordError(layer.origin, [f"extends: expected a name or a path, got {wanted!r}"])
    return layers


def override_layers(overrides: Sequence[str]) -> list[Layer]:
    """Return one layer for each `section.key=value`.

    Raises:
        RecordError: one is not of that form, or its value is not YAML.
    """
    layers = []
    for text in overrides:
        key, equals, value = text.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise RecordError(COMMAND_LINE, [f"'{text}': expected section.key=value"])
        if parts[0] in ("extends", "schema"):
            raise RecordError(COMMAND_LINE, [f"'{text}': '{parts[0]}' can be set in a file only"])
        nested: Any = parse_yaml(value, f"{COMMAND_LINE} '{text}'")
        for part in reversed(parts):
            nested = {part: nested}
        layers.append(Layer(f"{COMMAND_LINE} '{text}'", Path.cwd(), nested))
    return layers


def merge_layers(layers: Sequence[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the merged values, and the origin of each leaf's key path. Relative data files of a layer in
    another folder than the recipe's become absolute.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    leaf = _leaf(layers)
    for layer in layers:
        values = dict(layer.values)
        if layer is not leaf and not layer.origin.startswith(COMMAND_LINE):
            values = {key: value for key, value in values.items() if key not in _OWN}
        if layer.folder != leaf.folder and isinstance(values.get("data"), Mapping):
            values["data"] = _anchored(values["data"], layer.folder)
        _merge(merged, values, layer.origin, origins, "")
    return merged, origins


def _merge(
    into: dict[str, Any], values: Mapping[str, Any], origin: str, origins: dict[str, str], prefix: str
) -> None:
    for key, value in values.items():
        path = f"{prefix}{key}"
        if value is None and path in _MAPPINGS:
            value, into[key] = {}, {}
            _forget(origins, path)
            origins[path] = origin
        if isinstance(value, Mapping) and (value or isinstance(into.get(key), dict)):
            if not isinstance(into.get(key), dict):
                _forget(origins, path)
                into[key] = {}
            _merge(into[key], value, origin, origins, f"{path}.")
        else:
            _forget(origins, path)
            into[key] = value
            origins[path] = origin


def _forget(origins: dict[str, str], path: str) -> None:
    for known in [known for known in origins if known == path or known.startswith(f"{path}.")]:
        del origins[known]


def _leaf(layers: Sequence[Layer]) -> Layer:
    return [layer for layer in layers if not layer.origin.startswith(COMMAND_LINE)][-1]


def _anchored(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    anchored = dict(data)
    for key in ("files", "eval_files"):
        if isinstance(data.get(key), list):
            anchored[key] = [_anchor(name, folder) for name in data[key]]
    return anchored


def _anchor(name: Any, folder: Path) -> Any:
    if not isinstance(name, str) or Path(name).expanduser().is_absolute():
        return name
    return str(folder / name) if ":" not in name or (folder / name).exists() else name


def _read_layer(name_or_path: str, folder: Path, extended_by: str | None) -> Layer:
    try:
        if not looks_like_path(name_or_path):
            return _named_layer(name_or_path)
        path = Path(name_or_path).expanduser()
        path = path if path.is_absolute() else folder / path
        return Layer(_shown(path), path.resolve().parent, load_yaml(path), path)
    except InputError as error:
        if extended_by is None:
            raise
        raise RecordError(extended_by, [f"extends: {error}"]) from error


def _named_layer(name: str) -> Layer:
    plugin = find_plugin("recipe", name)
    if plugin.path is not None:
        return Layer(_shown(plugin.path), plugin.path.parent, load_yaml(plugin.path), plugin.path)
    recipe: Recipe = load_plugin(plugin)
    values = recipe.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return Layer(f"{name} of {plugin.package} {plugin.version}", Path.cwd(), values)


def _shown(path: Path) -> str:
    """The path as short as it can be said from here."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _layer_problems(layer: Layer, check: bool) -> list[tuple[str, str]]:
    partial = layer.values
    if layer.origin.startswith(COMMAND_LINE):
        partial = {"name": "override", **layer.values}
    problems: list[str] = []
    cleaned = {key: value for key, value in partial.items() if value is not None or key not in _MAPPINGS}
    try:
        parse_record(cleaned, Recipe, layer.origin)
    except RecordError as error:
        problems += error.problems
    if check:
        problems = [_with_section(problem) for problem in problems]
        for section in SECTIONS:
            if isinstance(partial.get(section), Mapping):
                problems += section_problems(section, partial[section])
    return [(layer.origin, problem) for problem in problems]


def _with_section(problem: str) -> str:
    """An unknown key that belongs one level deeper says where."""
    match = re.fullmatch(r"unknown key '([^'.]+)'", problem)
    homes = [section for section in SECTIONS if match and match[1] in section_fields(section)]
    return f"{problem}; did you mean '{homes[0]}.{match[1]}'?" if match and homes else problem


def _grouped(problems: Sequence[tuple[str, str]]) -> RecordError:
    """One error for the faults of several files: each line still begins with its own."""
    origins = list(dict.fromkeys(origin for origin, _ in problems))
    if len(origins) == 1:
        return RecordError(origins[0], [problem for _, problem in problems])
    error = RecordError(origins[0], [f"{origin}: {problem}" for origin, problem in problems])
    error.args = ("\n".join(error.problems),)
    return error
