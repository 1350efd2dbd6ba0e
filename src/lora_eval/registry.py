"""Plugins by name, through entry points: listed without importing, loaded one at a time.

An entry point's value is an object of the group's type, or a function or class that gives one when called
without arguments; an engine's is the function that opens it. Recipes, templates and suites that are files in
`templates/` and `evals/` stand in the same list as `lora-eval`'s own. Only what is asked for is imported, so
a broken plugin breaks only the command that asks for it.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import Any

from lora_eval.errors import LoraEvalError, PluginError
from lora_eval.resources import resource_folder
from lora_eval.schema import suggest

GROUPS = {
    "recipe": "lora_eval.recipes",
    "template": "lora_eval.chat_templates",
    "suite": "lora_eval.suites",
    "exporter": "lora_eval.exporters",
    "engine": "lora_eval.engines",
    "server": "lora_eval.servers",
    "judge": "lora_eval.judges",
}


@dataclass(frozen=True, slots=True)
class Plugin:
    """A name that can be asked for, and where it comes from. Exactly one of `entry_point` (code) and
    `path` (a packaged file) is set.
    """

    kind: str
    name: str
    package: str
    version: str
    entry_point: EntryPoint | None = None
    path: Path | None = None

    @property
    def source(self) -> str:
        """Where it is defined: `module:object` or the file's path."""
        return self.entry_point.value if self.entry_point else str(self.path)


def list_plugins(kind: str) -> list[Plugin]:
    """Return every plugin of a kind, sorted by name and package, duplicates included; imports nothing."""
    found = [*_packaged_files(kind), *_from_entry_points(kind)]
    return sorted(found, key=lambda plugin: (plugin.name, plugin.package))


def find_plugin(kind: str, name: str) -> Plugin:
    """Return the one plugin of that name.

    Raises:
        PluginError: unknown (with the nearest name and all known ones), or defined by two packages.
    """
    known = list_plugins(kind)
    matches = [plugin for plugin in known if plugin.name == name]
    if not matches:
        names = sorted({plugin.name for plugin in known})
        hint = suggest(name, names).removeprefix("; ")
        hint = f" {hint[0].upper()}{hint[1:]}" if hint else ""
        raise PluginError(f"No {kind} named '{name}'.{hint} Known: {', '.join(names) or 'none'}.")
    if len(matches) > 1:
        owners = " and ".join(f"{plugin.package} {plugin.version}" for plugin in matches)
        raise PluginError(f"The {kind} '{name}' is defined by {owners}; uninstall or rename one.")
    return matches[0]


def load_plugin(plugin: Plugin) -> Any:
    """Return the plugin's object; functions and classes that need no argument are called.

    Raises:
        PluginError: it cannot be imported or made, or is not what its group holds; names package, version
            and cause. A file-based plugin is read by the module of its kind, not here.
    """
    if plugin.entry_point is None:
        raise PluginError(f"The {plugin.kind} '{plugin.name}' is the file {plugin.path}, not code.")
    try:
        # What a plugin prints on import must not get into a command's --json output.
        with contextlib.redirect_stdout(sys.stderr):
            value = plugin.entry_point.load()
            value = value() if _needs_no_argument(value) else value
    except (Exception, SystemExit) as error:
        cause = str(error) if isinstance(error, LoraEvalError) else f"{type(error).__name__}: {error}"
        raise PluginError(f"{_described(plugin)} could not be loaded: {cause}") from error
    if problem := _misfit(plugin, value):
        raise PluginError(f"{_described(plugin)} {problem}")
    return value


def get(kind: str, name: str) -> Any:
    """Return the object of the code plugin `name` (PluginError as `find_plugin` and `load_plugin`)."""
    return load_plugin(find_plugin(kind, name))


def looks_like_path(name: str) -> bool:
    """True where a name given for a plugin is a path: it holds a separator or a file suffix we read."""
    return "/" in name or "\\" in name or name.endswith((".yaml", ".yml", ".jinja"))


def _described(plugin: Plugin) -> str:
    owner = f"{plugin.package} {plugin.version}"
    return f"The {plugin.kind} '{plugin.name}' ('{plugin.source}' of {owner})"


def _needs_no_argument(value: Any) -> bool:
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return False
    try:
        inspect.signature(value).bind()
    except (TypeError, ValueError):
        return False
    return True


def _misfit(plugin: Plugin, value: Any) -> str:
    """Say how the object differs from what its group holds; empty where it fits."""
    expected = _expected_types().get(plugin.kind, ())
    if expected and (inspect.isclass(value) or not isinstance(value, expected)):
        names = " or ".join(kind.__name__ for kind in expected)
        found = f"the class {value.__name__}" if inspect.isclass(value) else f"of type {type(value).__name__}"
        return f"is {found}, expected {names}"
    name = getattr(value, "name", plugin.name) if expected else plugin.name
    return f"calls itself '{name}'; both names must be equal" if name != plugin.name else ""


def _expected_types() -> dict[str, tuple[type, ...]]:
    from lora_eval import protocols, records

    return {
        "recipe": (records.Recipe,),
        "template": (records.ChatTemplate,),
        "suite": (records.EvalSuite, protocols.Suite),
        "exporter": (protocols.Exporter,),
        "judge": (records.JudgeProfile,),
        "server": (protocols.Server,),
    }


def _from_entry_points(kind: str) -> Iterable[Plugin]:
    for entry_point in entry_points(group=GROUPS[kind]):
        owner = entry_point.dist
        yield Plugin(
            kind,
            entry_point.name,
            owner.name if owner else "unknown package",
            owner.version if owner else "unknown version",
            entry_point=entry_point,
        )


def _packaged_files(kind: str) -> Iterable[Plugin]:
    own = own_version()
    for path in _files_of(kind):
        name = path.parent.name if kind == "suite" else path.stem
        yield Plugin(kind, name, "lora-eval", own, path=path)


def _files_of(kind: str) -> list[Path]:
    if kind == "recipe":
        return sorted((resource_folder("templates") / "recipes").glob("*.yaml"))
    if kind == "template":
        pairs = (resource_folder("templates") / "chat").glob("*.jinja")
        return sorted(path for path in pairs if not path.stem.endswith("_training"))
    if kind == "suite":
        return sorted(resource_folder("evals").glob("*/suite.yaml"))
    if kind == "judge":
        return sorted((resource_folder("templates") / "judges" / "profiles").glob("*.yaml"))
    return []


@cache
def own_version() -> str:
    """Return this package's installed version."""
    return version("lora-eval")
