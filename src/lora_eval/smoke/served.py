"""The server's side of every check: its models, its answers, and a check's three outcomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_eval.engines.http_client import Refused, ServerClient
from lora_eval.engines.http_requests import COMPLETIONS, Answer, Unread, greedy_body, read_answer
from lora_eval.errors import InputError
from lora_eval.protocols import GenerateRequest
from lora_eval.records import SmokeCheck

Outcome = tuple[bool | None, str]
"""Passed, failed or (None) not asked, and what was seen."""


@dataclass(slots=True)
class Served:
    """A server that was found up: `models` is what it lists (None: it lists nothing), `version` its own."""

    client: ServerClient
    models: dict[str, dict[str, Any]] | None = None
    version: str | None = None
    told: dict[str, list[Answer]] = field(default_factory=dict)

    @property
    def longest(self) -> int | None:
        """The number of tokens that the server reads at once, where it says so."""
        lengths = [entry.get("max_model_len") for entry in (self.models or {}).values()]
        return min((int(length) for length in lengths if length), default=None)

    def base_name(self, given: str | None) -> str:
        """Return the served name of the base: the one given, or the only model without a parent.

        Raises:
            InputError: there are several, or the server lists none.
        """
        if given:
            return given
        names = [name for name, entry in (self.models or {}).items() if not entry.get("parent")]
        if len(names) != 1:
            listed = ", ".join(self.models or {}) or "none"
            raise InputError(
                f"{self.client.url}: which of the server's models is the base? It lists {listed}; "
                "give its name with --base NAME=PATH"
            )
        return names[0]

    def answers(self, model: str, requests: Sequence[GenerateRequest]) -> list[Answer]:
        """Return greedy answers, asked one at a time; those of an earlier check are kept.

        Raises:
            Refused, Unread: the server does not answer.
        """
        if model not in self.told:
            bodies = bodies_of(model, requests)
            self.told[model] = [read_answer(self.client.post(COMPLETIONS, body)) for body in bodies]
        return self.told[model]


def find_served(client: ServerClient) -> Served:
    """Return the server with what it says of itself.

    Raises:
        ServerError: it cannot be reached.
    """
    served = Served(client)
    try:
        listed = client.get("/v1/models")
        served.models = {entry["id"]: entry for entry in listed["data"]}
    except (Refused, KeyError, TypeError):
        served.models = None
    try:
        said = client.get("/version")
        served.version = str(said["version"]) if isinstance(said, dict) and "version" in said else None
    except Refused:
        served.version = None
    return served


def bodies_of(model: str, requests: Sequence[GenerateRequest], **more: Any) -> list[dict[str, Any]]:
    """Return the completions for the requests."""
    return [greedy_body(model, r.input_ids, r.max_new_tokens, **more) for r in requests]


def outcome(name: str, arm: str | None, check: Callable[[], Outcome]) -> SmokeCheck:
    """Return the check; a server that refuses what is asked, or answers without it, has failed it."""
    try:
        passed, detail = check()
    except Refused as error:
        passed, detail = False, f"the server answers {error}"
    except Unread as error:
        passed, detail = False, str(error)
    return SmokeCheck(name=name, arm=arm, passed=passed, detail=detail)
