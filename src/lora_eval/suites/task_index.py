"""Find lm-eval's tasks by name without indexing all of them.

lm-eval's own index parses some 13,000 YAML files (9 to 12 s; issue EleutherAI/lm-evaluation-harness#3152).
Here their text is searched for the name, and only files that hold it, and what they name in turn, are parsed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from lora_eval.errors import TaskError

_KEY = r"^[\"']?(?:task|group|tag)[\"']?:"
_NAMED = re.compile(_KEY + r"[ \t]*[\"']?([\w.+:-]+)[\"']?[ \t]*(?:#.*)?$", re.MULTILINE)
_INCLUDE = re.compile(r"^[\"']?include[\"']?:[ \t]*[\"']?([^\s\"'#]+)", re.MULTILINE)
_IGNORED = {"__pycache__", ".ipynb_checkpoints"}


def load_tasks(names: Iterable[str], include: Path | None) -> Any:
    """Return a TaskManager that knows these tasks, groups and tags, and all that they are made of.

    A task of the folder `include` goes before lm-eval's own of the same name.

    Raises:
        TaskError: a name is in neither place; says the nearest ones.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=include, include_defaults=False)
    index = manager.task_index
    own = set(index)
    if include is not None and not own:
        raise TaskError(f"{include}: holds no task file; expected YAML files with 'task:' in them")
    searched: set[str] = set()
    parsed: dict[Path, None] = {}
    waiting = list(dict.fromkeys(names))
    asked = set(waiting)
    while waiting:
        name = waiting.pop(0)
        if name in searched:
            continue
        searched.add(name)
        if name not in own:
            _parse(_files_with(name), parsed, index)
        if name in index:
            waiting += parts_of(index[name])
        elif name in asked:
            raise TaskError(_unknown(name, own))
    return manager


def _parse(paths: Iterable[Path], parsed: dict[Path, None], index: dict[str, Any]) -> None:
    from lm_eval.tasks._index import TaskIndex
    from lm_eval.tasks._yaml_loader import load_yaml

    found: dict[str, Any] = {}
    for path in paths:
        if path not in parsed:
            parsed[path] = None
            config = load_yaml(path, resolve_func=False)
            if {"task", "group", "class"} & config.keys():
                TaskIndex.process_cfg(config, path, found)
    for name, entry in found.items():
        if name not in index:
            index[name] = entry
        elif index[name].yaml_path is None:  # a tag, met again in other files
            index[name].tags |= entry.tags


def parts_of(entry: Any) -> list[str]:
    """The names that a group or tag is made of."""
    if entry.yaml_path is None:
        return sorted(entry.tags)
    parts = entry.cfg.get("task") if "group" in entry.cfg else None
    return list(_names_in(parts)) if isinstance(parts, list) else []


def _names_in(parts: list[Any]) -> Iterable[str]:
    for part in parts:
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict):
            inner = part.get("task")
            if isinstance(inner, list):
                yield from _names_in(inner)
            yield from (part[key] for key in ("group", "task") if isinstance(part.get(key), str))


def _files_with(name: str) -> list[Path]:
    """lm-eval's task files that define the name or carry it as a tag, also through what they include."""
    key = rf"{_KEY}(?:[ \t]*|.*[\s\[,\"']){re.escape(name)}(?=[\s\],\"']|$)"
    item = rf"^\s*-\s*[\"']?{re.escape(name)}[\"']?\s*$"
    pattern = re.compile(f"{key}|{item}", re.MULTILINE)
    texts = _texts()
    matching = {path for path, text in texts.items() if name in text and pattern.search(text)}
    including = {path for path, included in _includes().items() if matching & included}
    return sorted(path for path in matching | including if path.suffix == ".yaml")


@cache
def _texts() -> dict[Path, str]:
    """The text of every task file of lm-eval, and of every file without a suffix that it may include."""
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    texts = {}
    for path in root.rglob("*"):
        if path.suffix in (".yaml", "") and not _IGNORED & set(path.parts) and path.is_file():
            texts[path] = path.read_text("utf-8", errors="replace")
    return texts


@cache
def _includes() -> dict[Path, set[Path]]:
    """For each task file, every file that it includes, directly or not."""
    texts = _texts()
    direct = {
        path: {(path.parent / inner).resolve() for inner in _INCLUDE.findall(text)}
        for path, text in texts.items()
        if "include" in text
    }

    def closure(path: Path, seen: frozenset[Path]) -> set[Path]:
        found = set(direct.get(path, ()))
        for inner in found - seen:
            found = found | closure(inner, seen | found)
        return found

    return {path: closure(path, frozenset((path,))) for path in direct}


def _unknown(name: str, own: set[str]) -> str:
    known = sorted(own | {found for text in _texts().values() for found in _NAMED.findall(text)})
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(repr(other) for other in close)}?" if close else ""
    return f"no task, group or tag '{name}', neither lm-eval's own nor in the include path{hint}"
