"""The commands of a card, as a reader copies them from it, and a hub that holds what they load."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lora_eval.publish import Options, prepare, publish
from tests.publish.hub_server import Hub


def blocks(card: str, language: str) -> list[str]:
    """The card's code blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)


def published_card(hub: Hub, folder: Path, base: Path, variant: str = "adapter", **options: Any) -> str:
    """Publish a variant of `folder`, put its base beside it as `org/base`, and return the card."""
    if "org/base" not in hub.repos:
        hub.repos["org/base"] = []
        files = {path.name: path.read_bytes() for path in base.iterdir() if path.is_file()}
        hub.push("org/base", files, "the base")
    given = {"repo_id": "me/tuned", "base_model": "org/base", "license": "apache-2.0"} | options
    found = prepare(folder / variant, folder / "runs" / "mine" / "comparison.json", Options(**given))
    publish(found, private=False, progress=lambda *_: None)
    return hub.head("me/tuned").files["README.md"].decode()
