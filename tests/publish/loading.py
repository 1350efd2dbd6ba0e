"""The commands of a card, as a reader copies them from it, and a hub that holds what they load."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_eval.engines.http_requests import greedy_body
from lora_eval.publish import Options, prepare, publish
from lora_eval.schema import dump_yaml
from lora_eval.serve.start import Start
from tests.publish.hub_server import Hub

IDS, END = tuple(range(70, 100)), 257


def blocks(card: str, language: str) -> list[str]:
    """The card's code blocks in a language; a shell joins lines at a backslash."""
    found = re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)
    return [text.replace("\\\n", " ") if language == "text" else text for text in found]


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


def write_recipe(adapter: Path) -> None:
    """A recipe beside the adapter that has a chat template of its own, so that servers need its tokenizer."""
    recipe = {"schema": 1, "name": "mine", "lora": {"r": 4}, "chat_template": "mine"}
    (adapter / "recipe.resolved.yaml").write_text(dump_yaml(recipe), "utf-8")


def continued(model: Any) -> list[int]:
    """The likeliest tokens after IDS, without an end token."""
    import torch

    with torch.no_grad():
        found = model.generate(torch.tensor([IDS]), max_new_tokens=12, do_sample=False)[0, len(IDS) :]
    return [each for each in found.tolist() if each != END]


@dataclass(frozen=True)
class FromCard:
    """A server that a card's command starts; `model` is where its tokenizer lies here, `cache` where it puts
    what it downloads.
    """

    command: list[str]
    names: tuple[str, ...]
    model: Path
    cache: Path
    environment: Mapping[str, str]
    host = "127.0.0.1"
    title = "the server"
    ready = "/v1/models"

    def check(self) -> None:
        """Whatever the card says is to be tried."""

    def start(self, port: int, scratch: Path) -> Start:
        """The card's command, with the place where we look for the server."""
        from huggingface_hub import constants

        hub = {
            "HF_ENDPOINT": constants.ENDPOINT, "HF_HUB_OFFLINE": "0", "HF_HOME": str(self.cache),
            # Set in this process by a library that has read HF_HOME, and then the place for all tests.
            "HF_HUB_CACHE": str(self.cache / "hub"), "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        more = ["--host", self.host, "--port", str(port)]
        return Start([*self.command, *more], dict(os.environ) | dict(self.environment) | hub)

    def first_request(self, name: str, ids: Sequence[int], text: str) -> Mapping[str, Any]:
        """A completion of two tokens."""
        return greedy_body(name, ids, 2)
