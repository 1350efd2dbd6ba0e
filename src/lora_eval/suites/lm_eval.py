"""Suites made of lm-eval tasks: load only what is asked for, run it on one arm, keep every item.

The home of lm_eval (with `bridge` and `task_index` beside it). Figures are lm-eval's own: its tasks, prompts,
filters, metrics and aggregation; ours are the scores and answers underneath, and the statistics afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_eval.errors import TaskError
from lora_eval.fingerprint import fingerprint_data, sha256_file
from lora_eval.protocols import Engine, Progress, SuiteResult
from lora_eval.records import EvalSuite, SampleRow, TaskResult
from lora_eval.suites.catalog import task_folder
from lora_eval.suites.fewshot import NOTE, fixed_shots
from lora_eval.suites.loading import Loaded, load_entry

if TYPE_CHECKING:
    from lora_eval.suites.bridge import Answers
    from lora_eval.suites.requests import SharedRequests

Items = Mapping[str, Sequence[int]]
"""Leaf task -> some of its items, as they are numbered in the data set (`SampleRow.item_id`)."""

_DATA = (".yaml", ".yml", ".py", ".jsonl", ".json", ".csv", ".txt", ".parquet")


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
        with quiet():
            self._items = {
                name: tuple(found) for item in self._loaded for name, found in item.items(limit).items()
            }
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

    @property
    def items(self) -> dict[str, tuple[int, ...]]:
        """What a whole run asks: the items of every leaf task, in order."""
        return dict(self._items)

    @property
    def metrics(self) -> dict[str, tuple[str, ...]]:
        """The metrics of every leaf task, in its own order."""
        return {
            name: tuple(task.higher_is_better()) for item in self._loaded for name, task in item.tasks.items()
        }

    @property
    def plain_means(self) -> frozenset[str]:
        """The groups whose figure counts every one of their tasks alike, whatever its number of items."""
        return frozenset(
            item.entry.task
            for item in self._loaded
            for group in item.groups.values()
            for each in (group, *group.get_all_groups())
            if any(not config.weight_by_size for config in each.aggregate_metric_list or ())
        )

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

    def run(
        self,
        engine: Engine,
        arm: str,
        progress: Progress,
        *,
        items: Items | None = None,
        answers: Answers | None = None,
    ) -> SuiteResult:
        """Score every item of every task on `arm`, or only `items`, with the prompts of the whole run.

        What `answers` holds of this arm is not asked again, and what is new is kept there.

        Raises:
            TaskError: `items` names a task or an item that a whole run does not ask.
        """
        chosen = None if items is None else self._places(items)
        rows: list[SampleRow] = []
        results: list[TaskResult] = []
        versions: dict[str, str] = {}
        cut: Counter[str] = Counter()
        for chat in (False, True):
            part = [item for item in self._loaded if item.chat is chat]
            tasks = _asked([item.tasks for item in part], chosen)
            if not tasks:
                continue
            found, lm = self._evaluate(part, tasks, engine, arm, progress, chosen, answers)
            from lora_eval.suites.samples import results_of, rows_of

            for item in part:
                for name in item.tasks.keys() & tasks.keys():
                    places = {number: place for place, number in enumerate(self._items[name])}
                    rows += rows_of(tasks[name], found["samples"][name], lm.facts, places, item.entry.cluster)
            results += results_of(found)
            versions |= {name: str(value) for name, value in found["versions"].items()}
            cut.update(name for name, _ in lm.truncated)
        order = {name: place for place, name in enumerate(self.task_names)}
        rows.sort(key=lambda row: order[row.task])
        notes = (*([NOTE] if self.fixed_fewshot else []), *(_cut_note(name, n) for name, n in cut.items()))
        return SuiteResult(rows, results, dict(sorted(versions.items())), notes=notes)

    def _places(self, items: Items) -> dict[str, frozenset[int]]:
        """Where the chosen items stand among those of the whole run."""
        chosen = {}
        for name, numbers in items.items():
            known = {number: place for place, number in enumerate(self._items.get(name, ()))}
            other = sorted(set(numbers) - known.keys())
            if other:
                raise TaskError(f"task '{name}': the run has no item {other[0]}; it has {len(known)} items")
            if numbers:
                chosen[name] = frozenset(known[number] for number in numbers)
        return chosen

    def _evaluate(
        self,
        part: Sequence[Loaded],
        tasks: dict[str, Any],
        engine: Engine,
        arm: str,
        progress: Progress,
        chosen: Mapping[str, frozenset[int]] | None,
        answers: Answers | None,
    ) -> tuple[dict[str, Any], Any]:
        import lm_eval
        import numpy

        from lora_eval.suites.bridge import EngineLM

        random.seed(0)  # lm-eval's own seeds: some tasks shuffle choices with the global generators
        numpy.random.seed(1234)
        for task in tasks.values():
            task.set_fewshot_seed(seed=self.record.seed)
        # Where all of a task are run, lm-eval is not given their numbers: it looks each item up in the list.
        samples = {
            name: list(self._items[name])
            for name, task in tasks.items()
            if len(self._items[name]) < len(task.eval_docs)
        }
        groups = {
            name: group
            for item in part
            if item.tasks.keys() <= tasks.keys()
            for name, group in item.groups.items()
        }
        shared = self._shared_requests(part[0].chat, engine.tokenizer)
        lm = EngineLM(
            engine,
            arm,
            seed=self.record.seed,
            progress=progress,
            encodings=shared.encodings,
            answers=answers,
        )
        fixed = fixed_shots(tasks) if self.fixed_fewshot else contextlib.nullcontext()
        with quiet(), fixed, shared.used_by(tasks, chosen):
            found = lm_eval.evaluate(
                lm=lm,
                task_dict={"tasks": tasks, "groups": groups, "group_map": {}},
                samples=samples,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=part[0].chat,
                fewshot_as_multiturn=part[0].chat,
            )
        return found, lm

    def _shared_requests(self, chat: bool, tokenizer: Any) -> SharedRequests:
        """The requests of the run before where the prompts are the same; else new ones, in their place."""
        from lora_eval.suites.requests import SharedRequests
        from lora_eval.suites.tokens import tokenizer_key

        key = tokenizer_key(tokenizer) if chat else None
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
            loaded = [load_entry(manager, entry, self.record) for entry in entries]
        owners: dict[str, str] = {}
        for item in loaded:
            for name in item.tasks:
                if name in owners:
                    raise TaskError(
                        f"task '{name}' is asked for twice, by '{owners[name]}' and by '{item.entry.task}'"
                    )
                owners[name] = item.entry.task
        return loaded

    def _files(self) -> dict[str, str]:
        if self._include is None:
            return {}
        paths = sorted(path for path in self._include.rglob("*") if path.suffix in _DATA and path.is_file())
        return {path.relative_to(self._include).as_posix(): sha256_file(path) for path in paths}


def _asked(tasks: Sequence[Mapping[str, Any]], chosen: Mapping[str, frozenset[int]] | None) -> dict[str, Any]:
    """The tasks of these entries that are run."""
    return {name: task for own in tasks for name, task in own.items() if chosen is None or name in chosen}


def _cut_note(task: str, n: int) -> str:
    return (
        f"{task}: {n} prompts were cut on the left to fit the model; "
        "a cut prompt no longer begins as others do, so little of it is shared with them"
    )


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
