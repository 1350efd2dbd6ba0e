"""What is known before of an arm that a server lists: its files are linted where they lie on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_eval.engines.http_client import Refused, ServerClient
from lora_eval.engines.http_requests import listed_entry
from lora_eval.errors import InputError
from lora_eval.protocols import DeployRequest, Server
from lora_eval.registry import get

_TOLD = ("refused", "ignored", "warning")


def lint_notes(client: ServerClient, model: str, base: Path) -> tuple[str, ...]:
    """Return what the rules of `lora-eval deploy` say of an adapter on the server's base, as notes: the
    server runs, and what it makes of the adapter is what is measured. Nothing where it does not list where
    the adapter's files lie, or they lie on another machine.

    `base` stands for the server's own where that lies on another machine.
    """
    try:
        models = {entry["id"]: entry for entry in client.get("/v1/models")["data"]}
    except (Refused, KeyError, TypeError):
        return ()
    entry = listed_entry(models, model) or {}
    parent = str(entry.get("parent") or "")
    adapter = _folder(entry, "adapter_config.json")
    if adapter is None:
        return ()
    name = "sglang" if model not in models else "vllm"
    server: Server = get("server", name)
    request = DeployRequest(_folder(models.get(parent, {}), "config.json") or base, parent, {model: adapter})
    try:
        found = server.lint(request)
    except InputError as error:
        return (f"{model}: its files could not be checked: {error}",)
    return tuple(
        f"{model}: {server.name} {server.version}, {finding.rule} ({finding.severity}): {finding.reason}"
        for finding in found
        if finding.arm == model and finding.severity in _TOLD
    )


def _folder(entry: Any, file: str) -> Path | None:
    """The folder that an entry of /v1/models names as its root, where it is one of this machine."""
    root = entry.get("root")
    return Path(root) if isinstance(root, str) and (Path(root) / file).is_file() else None
