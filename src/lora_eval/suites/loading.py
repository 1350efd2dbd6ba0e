"""One entry of a suite with lm-eval's task objects, and which of their items it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_eval.errors import LoraEvalError, TaskError
from lora_eval.records import EvalSuite, TaskEntry
from lora_eval.schema import suggest


@dataclass(frozen=True, slots=True)
class Loaded:
    """One entry of a suite with lm-eval's objects: leaf tasks by name, and groups above them."""

    entry: TaskEntry
    tasks: dict[str, Any]
    groups: dict[str, Any]
    chat: bool

    def items(self, limit: int | None) -> dict[str, list[int]]:
        """The items of each leaf that are run, as they are numbered in the data set: all of them, as many
        evenly spaced ones as the entry says, and of these the first `limit`.
        """
        return {
            name: spaced(len(task.eval_docs), self.entry.limit)[:limit] for name, task in self.tasks.items()
        }


def spaced(n: int, count: int | None) -> list[int]:
    """Return `count` of the numbers 0..n-1, evenly spaced (all where count is None or not below n)."""
    if count is None or count >= n:
        return list(range(n))
    return [i * n // count for i in range(count)]


def load_entry(manager: Any, entry: TaskEntry, suite: EvalSuite) -> Loaded:
    """Return the entry's tasks with the suite's settings.

    Raises:
        TaskError: a task cannot be loaded, or is of a kind that is not run here.
    """
    try:
        found = manager.load([entry.task])
    except LoraEvalError:
        raise
    except Exception as error:  # the task's own code and the data set's loader: anything may be raised
        raise TaskError(_load_failure(manager, entry.task, error)) from error
    for name, task in found["tasks"].items():
        _set_up(name, task, entry, suite.generation)
    chat = entry.apply_chat_template
    return Loaded(
        entry,
        found["tasks"],
        found.get("groups", {}),
        suite.apply_chat_template if chat is None else chat,
    )


def _set_up(name: str, task: Any, entry: TaskEntry, generation: Mapping[str, Any]) -> None:
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        kind = "runs code that the model wrote" if task.UNSAFE_CODE else "needs images"
        raise TaskError(f"task '{name}' {kind}, which is not supported here; run it with lm-eval")
    if task.OUTPUT_TYPE == "generate_until" and generation:
        task.set_config(key="generation_kwargs", value=dict(generation), update=True)
    # As lm-eval: a task that fixes zero shots keeps them.
    if entry.num_fewshot is not None and task.get_config("num_fewshot") != 0:
        task.set_config(key="num_fewshot", value=entry.num_fewshot)
    elif task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    if entry.cluster is not None and len(task.eval_docs):
        _check_cluster(name, list(task.eval_docs[0]), entry.cluster)


def _check_cluster(name: str, fields: list[str], cluster: str) -> None:
    """Told before anything is scored, and not by a KeyError after it."""
    if cluster not in fields:
        raise TaskError(
            f"task '{name}': cluster: its documents have no field '{cluster}'{suggest(cluster, fields)}; "
            f"fields: {', '.join(fields)}"
        )


def _load_failure(manager: Any, name: str, error: Exception) -> str:
    text = str(error).strip()
    cause = f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
    source = _data_set(manager, name)
    if source is None or not _is_missing_data(error):
        return f"task '{name}' cannot be loaded: {cause}"
    return (
        f"task '{name}': its data set {source} is not on this machine and cannot be downloaded ({cause}); "
        "run it once with a network, or give a task with data of your own through --include-path"
    )


def _is_missing_data(error: Exception) -> bool:
    from datasets.exceptions import DatasetsError

    return isinstance(error, (DatasetsError, OSError)) or "offline" in str(error).lower()


def _data_set(manager: Any, name: str, depth: int = 0) -> str | None:
    """The data set of a task, or of the first task of a group that has one."""
    from lora_eval.suites.task_index import parts_of

    entry = manager.task_index.get(name)
    if entry is None or depth > 8:
        return None
    path = (entry.cfg or {}).get("dataset_path")
    if path:
        part = entry.cfg.get("dataset_name")
        return f"{path} ({part})" if part else str(path)
    return next((found for part in parts_of(entry) if (found := _data_set(manager, part, depth + 1))), None)
