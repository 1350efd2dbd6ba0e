"""Suites made of lm-eval tasks: load only what is asked for, run it on one arm, keep every item.

The home of lm_eval (with `bridge` and `task_index` beside it). Figures are lm-eval's own: its tasks, prompts,
filters, metrics and aggregation; ours are the scores and answers underneath, and the statistics afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_eval.errors import LoraEvalError, TaskError
from lora_eval.fingerprint import fingerprint_data, sha256_file
from lora_eval.protocols import Engine, Progress, SuiteResult
from lora_eval.records import EvalSuite, SampleRow, TaskEntry, TaskResult
from lora_eval.suites.catalog import task_folder
from lora_eval.suites.fewshot import NOTE, fixed_shots

if TYPE_CHECKING:
    from lora_eval.suites.requests import SharedRequests

_DATA = (".yaml", ".yml", ".py", ".jsonl", ".json", ".csv", ".txt", ".parquet")


@dataclass(frozen=True, slots=True)
class Loaded:
    """One entry of a suite with lm-eval's objects: leaf tasks by name, and groups above them."""

    entry: TaskEntry
    tasks: dict[str, Any]
    groups: dict[str, Any]
    chat: bool

    def samples(self, limit: int | None, first: bool) -> dict[str, list[int]]:
        """Which items of each leaf are run: evenly spaced, or the first; empty where all are."""
        chosen = {}
        for name, task in self.tasks.items():
            n = len(task.eval_docs)
            items = spaced(n, self.entry.limit)
            if limit is not None and limit < len(items):
                items = items[:limit] if first else [items[i] for i in spaced(len(items), limit)]
            if len(items) < n:
                chosen[name] = items
        return chosen


class LmEvalSuite:
    """A suite of lm-eval tasks, loaded once and run on any arm.

    `limit` is lm-eval's own: the first items of every task. `fixed_fewshot` draws the shots of a task once
    for all of its items: another benchmark, under another name and fingerprint.

    Raises:
        TaskError: a task is unknown, cannot be loaded, or its data set is not on this machine.
    """

    def __init__(
        self, record: EvalSuite, folder: Path, *, limit: int | None = None, fixed_fewshot: bool = False
    ) -> None:
        if limit is not None and limit < 1:
            raise TaskError(f"--limit must be at least 1, got {limit}")
        if fixed_fewshot:
            record = record.model_copy(update={"name": f"{record.name} (fixed few-shot)"})
        self.record = record
        self.name = record.name
        self.limit = limit
        self.fixed_fewshot = fixed_fewshot
        self._include = task_folder(record, folder)
        self._shared: dict[bool, tuple[Any, SharedRequests]] = {}
        self._loaded = self._load()
        self.fingerprint = self._identity()

    @property
    def groups(self) -> dict[str, list[str]]:
        """The leaf tasks of every entry that is a group or a tag."""
        return {
            item.entry.task: list(item.tasks)
            for item in self._loaded
            if list(item.tasks) != [item.entry.task]
        }

    @property
    def task_names(self) -> list[str]:
        """Every leaf task, in order."""
        return [name for item in self._loaded for name in item.tasks]

    def _identity(self) -> str:
        """Return one text for what is asked: record, task configurations, own files, lm-eval's version."""
        tasks = {}
        for item in self._loaded:
            for name, task in item.tasks.items():
                config = dict(task.dump_config())
                config["metadata"] = {
                    key: value
                    for key, value in (config.get("metadata") or {}).items()
                    if key != "config_source"
                }
                tasks[name] = config
        record = self.record.model_dump(mode="json", exclude={"summary", "include_path", "items"})
        own: dict[str, Any] = {"record": record, "tasks": tasks, "files": self._files()}
        own["lm_eval"] = version("lm_eval")
        if self.fixed_fewshot:
            own["fixed_fewshot"] = True
        return fingerprint_data(own)

    def run(self, engine: Engine, arm: str, progress: Progress, *, sample: int | None = None) -> SuiteResult:
        """Score every item of every task on `arm`; `sample`: only about so many items of each entry."""
        rows: list[SampleRow] = []
        results: list[TaskResult] = []
        versions: dict[str, str] = {}
        cut: Counter[str] = Counter()
        for chat in (False, True):
            part = [item for item in self._loaded if item.chat is chat]
            if not part:
                continue
            found, facts, truncated = self._evaluate(part, engine, arm, progress, sample)
            from lora_eval.suites.samples import results_of, rows_of

            for item in part:
                for name, task in item.tasks.items():
                    rows += rows_of(task, found["samples"][name], facts, item.entry.cluster)
            results += results_of(found)
            versions |= {name: str(value) for name, value in found["versions"].items()}
            cut.update(name for name, _ in truncated)
        order = {name: place for place, name in enumerate(self.task_names)}
        rows.sort(key=lambda row: order[row.task])
        notes = (*([NOTE] if self.fixed_fewshot else []), *(_cut_note(name, n) for name, n in cut.items()))
        return SuiteResult(rows, results, dict(sorted(versions.items())), notes=notes)

    def _evaluate(
        self, part: Sequence[Loaded], engine: Engine, arm: str, progress: Progress, sample: int | None
    ) -> tuple[dict[str, Any], dict[Any, Any], set[Any]]:
        import lm_eval
        import numpy

        from lora_eval.suites.bridge import EngineLM

        samples: dict[str, list[int]] = {}
        random.seed(0)  # lm-eval's own seeds: some tasks shuffle choices with the global generators
        numpy.random.seed(1234)
        for item in part:
            for task in item.tasks.values():
                task.set_fewshot_seed(seed=self.record.seed)
            limit = -(-sample // len(item.tasks)) if sample else self.limit
            samples |= item.samples(limit, first=sample is None)
        tasks = {name: task for item in part for name, task in item.tasks.items()}
        groups = {name: group for item in part for name, group in item.groups.items()}
        shared = self._shared_requests(part[0].chat, samples, engine.tokenizer)
        lm = EngineLM(engine, arm, seed=self.record.seed, progress=progress, encodings=shared.encodings)
        fixed = fixed_shots(tasks) if self.fixed_fewshot else contextlib.nullcontext()
        with quiet(), fixed, shared.used_by(tasks):
            found = lm_eval.evaluate(
                lm=lm,
                task_dict={"tasks": tasks, "groups": groups, "group_map": {}},
                samples=samples,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=part[0].chat,
                fewshot_as_multiturn=part[0].chat,
            )
        return found, lm.facts, lm.truncated

    def _shared_requests(self, chat: bool, samples: dict[str, list[int]], tokenizer: Any) -> SharedRequests:
        """The requests of the run before where the prompts are the same; else new ones, in their place."""
        from lora_eval.suites.requests import SharedRequests
        from lora_eval.suites.tokens import tokenizer_key

        key = (samples, tokenizer_key(tokenizer) if chat else None)
        kept = self._shared.get(chat)
        if kept is None or kept[0] != key:
            self._shared[chat] = kept = (key, SharedRequests())
        return kept[1]

    def _load(self) -> list[Loaded]:
        from lora_eval.suites.task_index import load_tasks

        entries = self.record.entries()
        with quiet():
            manager = load_tasks([entry.task for entry in entries], self._include)
            random.seed(0)
            loaded = [self._load_entry(manager, entry) for entry in entries]
        owners: dict[str, str] = {}
        for item in loaded:
            for name in item.tasks:
                if name in owners:
                    raise TaskError(
                        f"task '{name}' is asked for twice, by '{owners[name]}' and by '{item.entry.task}'"
                    )
                owners[name] = item.entry.task
        return loaded

    def _load_entry(self, manager: Any, entry: TaskEntry) -> Loaded:
        try:
            found = manager.load([entry.task])
        except LoraEvalError:
            raise
        except Exception as error:  # the task's own code and the data set's loader: anything may be raised
            raise TaskError(_load_failure(manager, entry.task, error)) from error
        for name, task in found["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
                kind = "runs code that the model wrote" if task.UNSAFE_CODE else "needs images"
                raise TaskError(f"task '{name}' {kind}, which is not supported here; run it with lm-eval")
            if task.OUTPUT_TYPE == "generate_until" and self.record.generation:
                task.set_config(key="generation_kwargs", value=dict(self.record.generation), update=True)
            # As lm-eval: a task that fixes zero shots keeps them.
            if entry.num_fewshot is not None and task.get_config("num_fewshot") != 0:
                task.set_config(key="num_fewshot", value=entry.num_fewshot)
            elif task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
        chat = entry.apply_chat_template
        return Loaded(
            entry,
            found["tasks"],
            found.get("groups", {}),
            self.record.apply_chat_template if chat is None else chat,
        )

    def _files(self) -> dict[str, str]:
        if self._include is None:
            return {}
        paths = sorted(path for path in self._include.rglob("*") if path.suffix in _DATA and path.is_file())
        return {path.relative_to(self._include).as_posix(): sha256_file(path) for path in paths}


def _cut_note(task: str, n: int) -> str:
    return (
        f"{task}: {n} prompts were cut on the left to fit the model; "
        "a cut prompt no longer begins as others do, so little of it is shared with them"
    )


def spaced(n: int, count: int | None) -> list[int]:
    """Return `count` of the numbers 0..n-1, evenly spaced (all where count is None or not below n)."""
    if count is None or count >= n:
        return list(range(n))
    return [i * n // count for i in range(count)]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without lm-eval's log lines below errors, and without the bars it and datasets draw for every task."""
    import datasets
    import lm_eval.api.task

    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, lm_eval.api.task.tqdm
    shown = datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = lambda items, **_: items
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        lm_eval.api.task.tqdm = bars
        if not shown:
            datasets.enable_progress_bars()


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
