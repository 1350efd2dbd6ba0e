"""Licences and languages that the Hub knows, and what a base's licence lets its fine-tunes say.

The lists are data (`templates/cards/hub.yaml`): the Hub's rules live on its server, and huggingface_hub
checks neither.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from lora_eval.resources import resource_folder
from lora_eval.schema import load_yaml, suggest


@cache
def _lists() -> dict[str, Any]:
    found: dict[str, Any] = load_yaml(resource_folder("templates") / "cards" / "hub.yaml")
    return found | {"languages": found["languages"].split()}


def known_licences() -> list[str]:
    """Return every licence identifier of the Hub."""
    lists = _lists()
    return [*lists["permissive"], *lists["same"], *lists["no_derivatives"], "unknown"]


def check_licence(
    licence: str | None, base: str | None, *, name: str | None, link: str | None, repo: str
) -> list[str]:
    """Return what is wrong with the licence of a fine-tune whose base has the licence `base` (None: unknown).

    `name` and `link` describe a licence that has no identifier (`other`); `repo` is the repository's name
    without its owner.
    """
    if licence is None:
        known = f"the base's is {base}" if base else "the base names none"
        return [f"no licence: {known}; say yours with --license ID"]
    if licence not in known_licences():
        return [f"licence '{licence}': not an identifier of the Hub{suggest(licence, known_licences())}"]
    problems = []
    if licence == "other" and not (name and link):
        problems.append("licence 'other': needs --license-name and --license-link, so that it can be read")
    same, start = _lists()["same"].get(base), _lists()["name_begins"].get(base)
    if base in _lists()["no_derivatives"]:
        problems.append(f"the base's licence {base} forbids sharing what is derived from it")
    elif same is not None and licence not in (base, *same):
        allowed = " or ".join((base or "", *same))
        problems.append(f"licence '{licence}': what is derived from {base} may only be under {allowed}")
    if start and not repo.startswith(start):
        problems.append(
            f"--repo {repo}: the base's licence {base} asks for a name that begins with '{start}'"
        )
    return problems


def check_known_licence(option: str, licence: str | None) -> list[str]:
    """Return what is wrong with the licence that an option names (None: none)."""
    if licence is None or licence in known_licences():
        return []
    return [f"{option} '{licence}': not an identifier of the Hub{suggest(licence, known_licences())}"]


def notices(base: str | None) -> tuple[str, ...]:
    """Return the sentences that a base's licence wants shown with what is derived from it."""
    return tuple(_lists()["notices"].get(base, ()))


def check_languages(languages: tuple[str, ...]) -> list[str]:
    """Return what is wrong with the language codes."""
    known = _lists()["languages"]
    return [
        f"language '{language}': not a code of ISO 639-1{suggest(language, known)}"
        for language in languages
        if language not in known
    ]
