"""What `LocalServer` has to know of a server before it starts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Start:
    """A server's command, its environment, and the folder that it runs in (None: ours)."""

    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None


class Startable(Protocol):
    """A model (with adapters, where the server has them) that one kind of server can be started for."""

    @property
    def title(self) -> str:
        """What messages call the server."""

    @property
    def ready(self) -> str:
        """A place that it answers when it is up."""

    @property
    def model(self) -> Path:
        """The folder whose tokenizer counts."""

    @property
    def host(self) -> str:
        """The address that it listens on."""

    @property
    def names(self) -> tuple[str, ...]:
        """The served names."""

    def check(self) -> None:
        """Raise InputError or ModelError for what cannot be served."""

    def start(self, port: int, scratch: Path) -> Start:
        """Return the command; `scratch` is an empty folder that lives as long as the server."""

    def first_request(self, name: str, ids: Sequence[int], text: str) -> Mapping[str, Any]:
        """Return a completion of two tokens after `text`, or after its token ids."""
