"""Some items of a suite as a suite of their own, for runs of a sequential comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lora_eval.fingerprint import fingerprint_data
from lora_eval.protocols import Engine, Progress, SuiteResult
from lora_eval.suites.combined import CombinedSuite
from lora_eval.suites.lm_eval import Items, LmEvalSuite

if TYPE_CHECKING:
    from lora_eval.suites.bridge import Answers


class SelectedSuite:
    """The chosen items of a suite, asked as in the whole of it. `answers` are those that arms have given.

    Its fingerprint is its own: a run of it can be paired with runs of the same items only.
    """

    def __init__(
        self,
        suite: LmEvalSuite | CombinedSuite,
        items: Items,
        answers: Mapping[str, Answers] | None = None,
    ) -> None:
        self._suite = suite
        self._items = {name: tuple(sorted(numbers)) for name, numbers in items.items()}
        self._answers = answers or {}
        self.name = f"{suite.name} (sequential)"
        self.record = suite.record
        self.limit = suite.limit
        self.groups = suite.groups
        self.fingerprint = fingerprint_data([suite.fingerprint, self._items])

    def run(self, engine: Engine, arm: str, progress: Progress) -> SuiteResult:
        """Score the chosen items on `arm`; what it has answered already is not asked again."""
        return self._suite.run(engine, arm, progress, items=self._items, answers=self._answers.get(arm))
