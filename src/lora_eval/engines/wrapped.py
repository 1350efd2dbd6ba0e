"""An engine around another one: everything that it does not do itself is the inner one's."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lora_eval.protocols import Engine


class WrappedEngine:
    """What wrappers share. `work` are the inner engine's running totals unless the wrapper has its own; other
    attributes (`resident`, `drafts`, ...) are the inner engine's.
    """

    work: Counter[str]

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self.dtype = engine.dtype
        self.max_length = engine.max_length
        self.work = engine.work
        self._engine = engine

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the engine."""
        return self._engine.tokenizer

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms, base first."""
        return self._engine.arms

    def __getattr__(self, name: str) -> Any:
        if name == "_engine":  # while a copy is being made
            raise AttributeError(name)
        return getattr(self._engine, name)
