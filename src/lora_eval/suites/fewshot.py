"""One draw of shots for all items of a task: another benchmark than lm-eval's, and a much cheaper one.

lm-eval's usual sampler draws new shots for every item, so prompts of different items share nothing. Drawn
once, they share all of the shots.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_eval.errors import TaskError

NOTE = "fixed few-shot: one draw of shots for all items; figures are not those of the standard benchmark"


class FixedShots:
    """A task's sampler that draws once. With an item to leave out it draws one shot more than is asked for,
    as lm-eval does: the item, where it is among them, makes room for the last.
    """

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self._drawn: dict[int, Sequence[Any]] = {}

    def sample(self, n: int, eval_doc: Any = None) -> Sequence[Any]:
        """Return n shots without `eval_doc`; but for that, the same ones every time."""
        count = n if eval_doc is None else n + 1
        if count not in self._drawn:
            self._drawn[count] = list(self._sampler.sample(n=count))
        shots = [shot for shot in self._drawn[count] if shot != eval_doc][:n]
        if len(shots) < n:  # the item stands more than once in the data set, and was drawn as often
            return list(self._sampler.sample(n=n, eval_doc=eval_doc))
        return shots


@contextlib.contextmanager
def fixed_shots(tasks: Mapping[str, Any]) -> Iterator[None]:
    """While open, each task gives all of its items the shots that its sampler draws first. A task that takes
    the first ones of a split does so already.

    Raises:
        TaskError: a task draws its shots without lm-eval's sampler.
    """
    from lm_eval.api.samplers import FirstNSampler

    drawing = [
        task
        for task in tasks.values()
        if task.get_config("num_fewshot") and not isinstance(getattr(task, "sampler", None), FirstNSampler)
    ]
    for task in drawing:
        if not hasattr(task, "sampler"):
            raise TaskError(
                f"task '{task.task_name}' draws its shots in code of its own, so they cannot be fixed; "
                "run it without fixed few-shot, or with num_fewshot 0"
            )
    samplers = [task.sampler for task in drawing]
    for task in drawing:
        task.sampler = FixedShots(task.sampler)
    try:
        yield
    finally:
        for task, sampler in zip(drawing, samplers, strict=True):
            task.sampler = sampler
