"""The recipes that can be asked for by name, and the text of one, without importing any library they use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_eval.errors import OutputError, RecordError
from lora_eval.registry import list_plugins
from lora_eval.schema import dump_yaml, load_yaml, write_text


@dataclass(frozen=True, slots=True)
class RecipeEntry:
    """One line of `lora-eval recipe list`; `source` is the file, or `module:object` of a plugin, whose
    summary is not known without importing it.
    """

    name: str
    package: str
    version: str
    summary: str
    source: str


def list_recipes() -> list[RecipeEntry]:
    """Return every recipe, sorted by name. A file that cannot be read says so in its summary."""
    entries = []
    for plugin in list_plugins("recipe"):
        summary = _summary(plugin.path) if plugin.path else f"(plugin: {plugin.source})"
        entries.append(RecipeEntry(plugin.name, plugin.package, plugin.version, summary, plugin.source))
    return entries


def recipe_text(name_or_path: str) -> str:
    """Return a recipe as it is written: its file with all comments, or a plugin's as YAML."""
    from lora_eval.recipes.resolve import find_layers

    leaf = find_layers(name_or_path)[-1]
    return leaf.path.read_text("utf-8") if leaf.path else dump_yaml(leaf.values)


def copy_recipe(name_or_path: str, out: Path) -> None:
    """Write the recipe's text to a new file for editing.

    Raises:
        OutputError: `out` exists already, or cannot be written.
    """
    text = recipe_text(name_or_path)
    if out.exists():
        raise OutputError(f"{out} exists already; give another file with --out")
    write_text(out, text)


def _summary(path: Path) -> str:
    try:
        return str(load_yaml(path).get("summary") or "")
    except RecordError as error:
        return f"(broken: {error.problems[0]})"
