"""Judge profiles by name, by path, or from a plugin; and what identifies a judge."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lora_eval.errors import InputError, PluginError, RecordError
from lora_eval.judges.evaluators import PREFIX, evaluator_profile
from lora_eval.records import JudgeProfile
from lora_eval.registry import list_plugins, load_plugin, looks_like_path
from lora_eval.resources import resource_folder
from lora_eval.schema import load_yaml, parse_record, suggest

LOCAL = "local:"  # in place of a URL: a model that our own engine opens
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
# What keys look like: a prefix and a long tail without words. Found in a profile, it is refused unseen.
_KEY = re.compile(r"\b(sk|hf|gsk|xai|pk|key|ghp|AIza)[-_]?[A-Za-z0-9_-]{20,}")
_LOOPBACK = re.compile(r"(localhost|127(\.[0-9]{1,3}){3}|\[?::1\]?)")


def packaged_profiles() -> dict[str, Path]:
    """Return the files of the profiles in the package, by name."""
    folder = resource_folder("templates") / "judges" / "profiles"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_profile(name_or_path: str, *, model: str | None = None, base_url: str | None = None) -> JudgeProfile:
    """Return the profile with its model and URL, those given here first.

    Raises:
        RecordError: the file breaks the schema, or holds a key; every problem at once, no key repeated.
        InputError: model or URL is missing, or the URL cannot be used.
        PluginError: there is no profile of that name, or a plugin's is broken.
    """
    profile = find_profile(name_or_path)
    model = model or profile.model
    if model and model.startswith(LOCAL):
        return profile.model_copy(
            update={"model": model, "base_url": LOCAL, "api_key_env": None, "price": None}
        )
    changed = {"model": model, "base_url": (base_url or profile.base_url or "").rstrip("/")}
    profile = profile.model_copy(update=changed)
    problems = []
    if not profile.model:
        problems.append(f"judge {profile.name}: no model; give --judge-model NAME")
    problems += [f"judge {profile.name}: {problem}" for problem in _url_problems(profile.base_url or "")]
    if problems:
        raise InputError("\n".join(problems))
    return profile


def read_key(profile: JudgeProfile) -> str | None:
    """Return the endpoint's key from the environment; None where none is needed.

    Raises:
        InputError: the variable is not set for an endpoint that is not on this machine, or the key would
            travel in plain http.
    """
    url = profile.base_url or ""
    key = os.environ.get(profile.api_key_env or "", "").strip() or None
    if key is None and profile.api_key_env and not is_loopback(url):
        raise InputError(
            f"judge {profile.name}: the environment variable {profile.api_key_env} is not set; it holds the "
            f"key of {url}"
        )
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise InputError(
            f"judge {profile.name}: what {profile.api_key_env} holds is no key: expected "
            "printable ASCII without spaces"
        )
    if key and urlsplit(url).scheme == "http" and not is_loopback(url):
        raise InputError(f"judge {profile.name}: {url} is plain http, which would show the key; use https")
    return key


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine."""
    return bool(_LOOPBACK.fullmatch(urlsplit(url).hostname or ""))


def identity(profile: JudgeProfile, prompt: str) -> str:
    """Return the judge's name for records: model, profile, and a hash of all that shapes a verdict.

    `prompt` is the text of its template. Limits, timeouts and prices shape none.
    """
    shaping = profile.model_dump(mode="json", exclude={"summary", "limits", "timeout", "price", "retries"})
    shaping |= {"prompt": prompt, "api_key_env": None}
    digest = hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:8]
    return f"{profile.model} ({profile.name} {digest})"


def find_profile(name: str) -> JudgeProfile:
    """Return the profile as it is written, whether it names a model and an endpoint or not.

    Raises:
        RecordError, PluginError: as `load_profile`.
    """
    known = packaged_profiles()
    if name.startswith(PREFIX):
        return evaluator_profile(name.removeprefix(PREFIX))
    if looks_like_path(name):
        return _read(Path(name))
    if name in known:
        return _read(known[name])
    plugins = [plugin for plugin in list_plugins("judge") if plugin.entry_point is not None]
    found = [plugin for plugin in plugins if plugin.name == name]
    if not found:
        names = sorted({*known, *(plugin.name for plugin in plugins)})
        raise PluginError(f"No judge named '{name}'{suggest(name, names)} Known: {', '.join(names)}.")
    if len(found) > 1:
        owners = " and ".join(f"{plugin.package} {plugin.version}" for plugin in found)
        raise PluginError(f"The judge '{name}' is defined by {owners}; uninstall or rename one.")
    profile = load_plugin(found[0])
    if not isinstance(profile, JudgeProfile):
        raise PluginError(f"The judge '{name}' of {found[0].package} is of type {type(profile).__name__}, "
                          "expected JudgeProfile")  # fmt: skip
    return profile


def _read(path: Path) -> JudgeProfile:
    data = load_yaml(path)
    secrets = _secrets(data)
    if secrets:
        fault = "looks like a key; keys are read from the environment only (api_key_env: NAME)"
        raise RecordError(str(path), [f"{place}: {fault}" for place in secrets])
    return parse_record(data, JudgeProfile, str(path))


def _secrets(value: Any, place: str = "") -> list[str]:
    """Places of what may be a key. What they hold is never repeated."""
    if isinstance(value, dict):
        return [
            found
            for key, inner in value.items()
            for found in _secrets(inner, f"{place}.{key}" if place else str(key))
        ]
    if isinstance(value, list):
        return [found for i, inner in enumerate(value) for found in _secrets(inner, f"{place}[{i}]")]
    if not isinstance(value, str):
        return []
    if place == "api_key_env":
        return [] if _VARIABLE.fullmatch(value) and not _KEY.search(value) else [place]
    named = re.search(r"(api_?key|token|secret|password|authorization)$", place, re.IGNORECASE)
    credentials = place == "base_url" and "@" in urlsplit(value).netloc
    return [place] if _KEY.search(value) or (named and value) or credentials else []


def _url_problems(url: str) -> list[str]:
    if not url:
        return ["no base_url; give --judge-url URL, as OpenAI's clients take it, with its /v1"]
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return ["base_url: expected http://HOST/v1 or https://HOST/v1"]
    if parts.username or parts.password:
        return ["base_url: holds a user name or password; keys are read from the environment only"]
    if parts.query or parts.fragment:
        return ["base_url: expected no ? and no #"]
    return []
