"""Chat templates, added tokens and end tokens: what a server reads beside the weights, and what it does not.

Every server has one tokenizer and one template for its base and all adapters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_eval.models.legacy import legacy_tokenizer
from lora_eval.models.locate import read_config
from lora_eval.records import Finding
from lora_eval.servers.commands import merge_fix
from lora_eval.servers.inputs import Adapter, Model

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Packaging:
    """Where a server finds them. `has_stop_option`: generation settings beside the model can be named at
    start. `legacy`: it reads tokenizer_config.json only (`issue` says so).
    """

    server: str
    has_stop_option: bool
    legacy: bool = False
    issue: str | None = None


@dataclass(frozen=True, slots=True)
class Texts:
    """The one template and the end tokens of a deployment; `changed` and `added` say what the configuration
    has to carry because the base's own files do not hold it.
    """

    template: str | None
    changed: bool
    stops: tuple[int, ...]
    added: tuple[int, ...]


def read_template(folder: Path) -> str | None:
    """Return the folder's default chat template, from the file of its own or from tokenizer_config.json."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    inside = _config(folder, "tokenizer_config.json").get("chat_template")
    if isinstance(inside, list):
        named = {entry["name"]: entry["template"] for entry in inside}
        return named.get("default")
    return inside if isinstance(inside, str) else None


def read_stops(folder: Path) -> tuple[int, ...]:
    """Return the ids at which generation ends: of generation_config.json, else of config.json."""
    for name in ("generation_config.json", "config.json"):
        value = _config(folder, name).get("eos_token_id")
        if value is not None:
            return tuple(value) if isinstance(value, list) else (value,)
    return ()


def added_tokens(folder: Path) -> dict[str, int]:
    """Return the tokens that tokenizer.json adds to its vocabulary, with their ids; empty without it."""
    found = _config(folder, "tokenizer.json").get("added_tokens") or []
    return {str(token["content"]): int(token["id"]) for token in found}


def choose_texts(model: Model, adapters: Sequence[Adapter]) -> Texts:
    """Return the template and end tokens that serve all arms (those of the first adapter that has some)."""
    own = read_template(model.folder)
    theirs = [text for text in (read_template(adapter.folder) for adapter in adapters) if text is not None]
    template = theirs[0] if theirs else own
    known = read_stops(model.folder)
    added: dict[int, None] = {}
    for adapter in adapters:
        added |= dict.fromkeys(stop for stop in read_stops(adapter.folder) if stop not in known)
    return Texts(template, template != own, (*known, *added), tuple(added))


def text_findings(model: Model, adapters: Sequence[Adapter], packaging: Packaging) -> Iterator[Finding]:
    """Say where one template, one tokenizer and one list of end tokens do not serve all arms."""
    yield from _template_findings(model, adapters, packaging)
    for adapter in adapters:
        yield from _token_findings(adapter, model)
        yield from _stop_findings(adapter, model, packaging)
    if not read_stops(model.folder):
        reason = "neither generation_config.json nor config.json names an end token: answers do not end"
        issue = "https://github.com/vllm-project/vllm/issues/4180"
        yield Finding(arm=model.name, rule="stop-tokens", severity="warning", reason=reason, issue=issue)


def _template_findings(model: Model, adapters: Sequence[Adapter], packaging: Packaging) -> Iterator[Finding]:
    texts = choose_texts(model, adapters)
    own = read_template(model.folder)
    if texts.template is None:
        reason = "no chat template in the model's folder: only plain completions can be asked for"
        yield Finding(arm=model.name, rule="chat-template", severity="warning", reason=reason)
        return
    for adapter in adapters:
        text = read_template(adapter.folder) or own
        if text != texts.template:
            yield Finding(
                arm=adapter.name,
                rule="chat-template",
                severity="ignored",
                reason=f"its chat template is not that of {adapters[0].name}, and {packaging.server} has one "
                "for all arms: its prompts would not be those measured; deploy it apart, or merge it",
                fix=merge_fix(adapter, model),
            )
    if texts.changed:
        reason = "requests to the base get the adapters' chat template too, which is not its own"
        yield Finding(arm=model.name, rule="chat-template", severity="info", reason=reason)
    if packaging.legacy and _MARKS.search(texts.template):
        reason = (
            "its default template holds {% generation %}, and whether the server's Jinja dialect takes that "
            "was never tried: use the text without the marks as the default one (`lora-eval template`)"
        )
        yield Finding(arm=model.name, rule="chat-template", severity="refused", reason=reason)
    if packaging.legacy and (model.folder / "chat_template.jinja").is_file():
        reason = (
            "the template lies in chat_template.jinja, which the server never reads: the configuration holds "
            "it in a tokenizer_config.json"
        )
        yield Finding(
            arm=model.name, rule="chat-template", severity="info", reason=reason, issue=packaging.issue
        )


def _token_findings(adapter: Adapter, model: Model) -> Iterator[Finding]:
    theirs, own = added_tokens(adapter.folder), added_tokens(model.folder)
    new = [token for token, number in theirs.items() if own.get(token) != number]
    if new and own:
        shown = ", ".join(repr(token) for token in new[:_SHOWN])
        yield Finding(
            arm=adapter.name,
            rule="tokenizer",
            severity="ignored",
            reason=f"its tokenizer has {len(new)} tokens that the base's has not ({shown}), and a server "
            "reads the base's: its prompts would be split otherwise than in training",
            fix=merge_fix(adapter, model),
        )


def _stop_findings(adapter: Adapter, model: Model, packaging: Packaging) -> Iterator[Finding]:
    if not any((adapter.folder / name).is_file() for name in ("generation_config.json", "config.json")):
        return
    missing = [stop for stop in read_stops(adapter.folder) if stop not in read_stops(model.folder)]
    if not missing:
        return
    what = f"it was trained to end at {', '.join(map(str, missing))}, which the base's settings do not name"
    issue = "https://github.com/unslothai/unsloth/issues/5386"
    if packaging.has_stop_option:
        reason = f"{what}: the configuration adds it, for all arms"
        yield Finding(arm=adapter.name, rule="stop-tokens", severity="info", reason=reason, issue=issue)
        return
    yield Finding(
        arm=adapter.name,
        rule="stop-tokens",
        severity="ignored",
        reason=f"{what}, and {packaging.server} reads those of the base only: answers would not end",
        issue=issue,
        fix=merge_fix(adapter, model),
    )


def legacy_tokenizer_config(model: Model, template: str | None) -> Mapping[str, Any]:
    """Return the base's tokenizer_config.json as transformers 4 reads it, with the template in it, where TGI
    and LoRAX look for it.
    """
    config = legacy_tokenizer(_config(model.folder, "tokenizer_config.json"))
    return config if template is None else config | {"chat_template": template}


def generation_settings(model: Model, stops: tuple[int, ...]) -> Mapping[str, Any]:
    """Return the base's generation settings with these end tokens."""
    settings = _config(model.folder, "generation_config.json")
    return settings | {"eos_token_id": stops[0] if len(stops) == 1 else list(stops)}


def _config(folder: Path, name: str) -> dict[str, Any]:
    return read_config(folder, name) if (folder / name).is_file() else {}
