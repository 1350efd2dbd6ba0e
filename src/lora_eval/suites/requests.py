"""lm-eval's requests of some tasks: built for the first arm by lm-eval itself, given again to later arms.

Building is most of lm-eval's own work: few-shot contexts, templates, the data set's rows. All of it is the
same for every arm that reads the same prompts.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import lm_eval.utils
import numpy
from lm_eval.api.instance import Instance

from lora_eval.suites.encoding import Encodings


@dataclass(frozen=True, slots=True)
class _Built:
    """One task's requests, and where the global generators stood after they were built."""

    instances: list[Instance]
    random_state: Any
    numpy_state: Any


@dataclass(slots=True)
class SharedRequests:
    """The requests of some tasks for all arms that read the same prompts, with their token ids."""

    encodings: Encodings = field(default_factory=Encodings)
    _built: dict[str, _Built] = field(default_factory=dict)

    @contextlib.contextmanager
    def used_by(
        self, tasks: Mapping[str, Any], chosen: Mapping[str, frozenset[int]] | None = None
    ) -> Iterator[None]:
        """While open, each task builds its requests once, ever; later it has the same, without answers.

        `chosen` leaves each task some of its items, by their place in the run. They are taken out of the
        requests of all, for the shots of an item depend on how many items were drawn for before it.
        """
        for name, task in tasks.items():
            places = None if chosen is None else chosen[name]
            task.build_all_requests = partial(self._build, name, task, task.build_all_requests, places)
        try:
            with compiled_templates():
                yield
        finally:
            for task in tasks.values():
                del task.build_all_requests
                vars(task).pop("doc_iterator", None)

    def _build(
        self,
        name: str,
        task: Any,
        build: Callable[..., None],
        places: frozenset[int] | None,
        **options: Any,
    ) -> None:
        built = self._built.get(name)
        if built is None:
            build(**options)
            built = _Built(task.instances, random.getstate(), numpy.random.get_state())
            self._built[name] = built
        # What comes after may draw: every arm must draw the same.
        random.setstate(built.random_state)
        numpy.random.set_state(built.numpy_state)
        instances = built.instances
        if places is not None:
            instances = [instance for instance in instances if instance.doc_id in places]
            docs = {instance.doc_id: instance.doc for instance in instances}
            task.doc_iterator = lambda **_: iter(docs.items())
        for instance in instances:
            instance.resps, instance.filtered_resps = [], {}
        task._instances = instances


@contextlib.contextmanager
def compiled_templates() -> Iterator[None]:
    """While open, lm-eval compiles each prompt template once, not once for every text (half of its time)."""
    environment = lm_eval.utils.env
    compile_text = environment.from_string
    known: dict[str, Any] = {}

    def from_string(source: Any, *args: Any, **options: Any) -> Any:
        if args or options or not isinstance(source, str):
            return compile_text(source, *args, **options)
        if source not in known:
            known[source] = compile_text(source)
        return known[source]

    environment.from_string = from_string
    try:
        yield
    finally:
        del environment.from_string
