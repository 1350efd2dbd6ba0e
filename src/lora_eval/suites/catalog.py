"""Suites by name or path: their record and folder, and where their own task files lie. Imports no library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lora_eval.errors import InputError, PluginError
from lora_eval.records import EvalSuite, TaskEntry
from lora_eval.registry import find_plugin, load_plugin, looks_like_path
from lora_eval.resources import resolve_path
from lora_eval.schema import read_record

_FILE = "suite.yaml"


def load_suite(name_or_path: str) -> tuple[EvalSuite, Path]:
    """Return a suite's record and the folder that its paths are relative to.

    A name is a packaged or installed suite; a path is a folder with `suite.yaml`, or a YAML file.

    Raises:
        PluginError: no such name (with the nearest one), defined twice, or broken.
        RecordError: the file is missing or breaks the schema.
        InputError: the suite's folder of tasks does not exist.
    """
    if looks_like_path(name_or_path) or Path(name_or_path).is_dir():
        return _read(Path(name_or_path).expanduser())
    plugin = find_plugin("suite", name_or_path)
    if plugin.path is not None:
        return _read(plugin.path)
    suite = load_plugin(plugin)
    if not isinstance(suite, EvalSuite):
        raise PluginError(
            f"The suite '{plugin.name}' ('{plugin.source}' of {plugin.package} {plugin.version}) is "
            f"{type(suite).__name__}; a suite that is not made of lm-eval tasks has no record to read"
        )
    task_folder(suite, Path())
    return suite, Path()


def suite_of_tasks(
    tasks: Sequence[str], include_path: str | None, *, num_fewshot: int | None = None
) -> tuple[EvalSuite, Path]:
    """Return a suite made of lm-eval tasks by name, with task files of one's own in `include_path`."""
    entries = tuple(TaskEntry(task=task, num_fewshot=num_fewshot) for task in tasks)
    suite = EvalSuite(name="tasks", version="0", tasks=entries, include_path=include_path)
    task_folder(suite, Path())
    return suite, Path()


def task_folder(suite: EvalSuite, folder: Path) -> Path | None:
    """Return the folder with the suite's own task files, or None where it has none."""
    if suite.include_path is None:
        return None
    path = resolve_path(suite.include_path, folder)
    if not path.is_dir():
        raise InputError(f"suite {suite.name}: include_path {path} is not a folder")
    return path


def _read(path: Path) -> tuple[EvalSuite, Path]:
    file = path / _FILE if path.is_dir() else path
    suite = read_record(file, EvalSuite)
    task_folder(suite, file.parent)
    return suite, file.parent
