"""Find the folder that an arm names: a local one, one in a package, or a Hub repository's in the cache."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_eval.errors import InputError, ModelError, RecordError
from lora_eval.resources import resolve_path
from lora_eval.schema import load_json

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_IN_PACKAGE = re.compile(r"[A-Za-z_][\w.]*:[^:]+")
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# What other frameworks ask for and a Hub repository holds a second time.
_NOT_NEEDED = ["*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.ot", "*.pth", "original/*", "onnx/*", "*.tflite"]


def parse_arm(text: str) -> tuple[str | None, str, str | None]:
    """Return (name, path or Hub id, revision) of `[NAME=]PATH[@REV]`.

    What exists as a path is taken whole, so that a folder may have `=` or `@` in its name.

    Raises:
        ModelError: the path is empty, or the name cannot be a folder's name.
    """
    name, place = None, text
    head, equals, tail = text.partition("=")
    if equals and not Path(text).expanduser().exists() and "/" not in head:
        if not _NAME.fullmatch(head):
            raise ModelError(
                f"'{text}': '{head}' is no name for an arm; use letters, digits, '.', '_' and '-'"
            )
        name, place = head, tail
    path, at, revision = place.rpartition("@")
    if not at or Path(place).expanduser().exists():
        path, revision = place, ""
    if not path:
        raise ModelError(f"'{text}': no path; expected [NAME=]PATH[@REVISION]")
    return name, path, revision or None


def resolve_model(name: str, revision: str | None = None) -> Path:
    """Return the folder of a whole model: a path, one in a package (`lora_eval:pocket/model`), or the
    snapshot of a Hub repository.

    Raises:
        ModelError: there is no such folder or repository, or config.json or weights are missing in it.
    """
    folder = _find(name, revision)
    check_model_files(folder)
    return folder


def resolve_adapter(name: str, revision: str | None = None) -> Path:
    """Return the folder of an adapter: a path, or the snapshot of a Hub repository.

    Raises:
        ModelError: there is no such folder or repository, or adapter_config.json or weights are missing.
    """
    folder = _find(name, revision)
    read_adapter_config(folder)
    adapter_weights(folder)
    return folder


def check_model_files(folder: Path) -> None:
    """Raise ModelError where the folder lacks config.json, weights, or a shard that its index names."""
    if not any(folder.iterdir()):
        raise ModelError(f"{folder}: the folder is empty; expected config.json and *.safetensors weights")
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"{folder}: is an adapter (adapter_config.json), not a whole model (no config.json); "
                "give it as --adapter, with its base as --base"
            )
        raise ModelError(f"{folder}: no config.json; expected a model folder as save_pretrained writes it")
    read_config(folder, "config.json")
    if not weight_files(folder):
        raise ModelError(
            f"{folder}: no weights; expected model.safetensors (or its shards) beside config.json"
        )


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights, empty where there are none.

    Raises:
        ModelError: the index of the shards names a file that is not there.
    """
    for kind in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{kind}.index.json"
        if (folder / kind).is_file():
            return [folder / kind]
        if index.is_file():
            named = read_config(folder, index.name).get("weight_map")
            if not isinstance(named, dict) or not named:
                raise ModelError(f"{index}: has no weight_map, which says what lies where; copy it again")
            shards = sorted(set(named.values()))
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing:
                raise ModelError(
                    f"{index}: names {len(missing)} shards that are not there, first {missing[0]}; "
                    "copy or download the model again"
                )
            return [folder / shard for shard in shards]
    return sorted(folder.glob("*.safetensors")) if not (folder / _ADAPTER_WEIGHTS[0]).exists() else []


def adapter_weights(adapter: Path) -> Path:
    """Return the file with the adapter's weights (ModelError where there is none)."""
    for name in _ADAPTER_WEIGHTS:
        if (adapter / name).is_file():
            return adapter / name
    raise ModelError(
        f"{adapter}: an adapter without weights; expected adapter_model.safetensors beside "
        "adapter_config.json (save it again, or copy the whole folder)"
    )


def read_adapter_config(adapter: Path) -> dict[str, Any]:
    """Return adapter_config.json.

    Raises:
        ModelError: the folder, or the file in it, is missing or is not JSON.
    """
    if not adapter.is_dir():
        raise ModelError(f"{adapter}: no such folder; expected an adapter as PEFT saves it")
    if not (adapter / "adapter_config.json").is_file():
        found = "a whole model (config.json)" if (adapter / "config.json").is_file() else "no adapter"
        raise ModelError(
            f"{adapter}: no adapter_config.json; this is {found}; expected an adapter as PEFT saves it"
        )
    return read_config(adapter, "adapter_config.json")


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """Return the rows of the embedding that a config.json names; in a model of several parts, its text's."""
    found = config.get("vocab_size")
    return (config.get("text_config") or {}).get("vocab_size") if found is None else found


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """Return a JSON file of a model folder (ModelError where it is not a JSON object)."""
    try:
        data = load_json(folder / name)
    except RecordError as error:
        raise ModelError(str(error)) from error
    if not isinstance(data, dict):
        raise ModelError(f"{folder / name}: expected a JSON object, got {type(data).__name__}")
    return data


def open_config(folder: Path) -> Any:
    """Return transformers' configuration of a model folder (ModelError where it cannot read config.json)."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (StrictDataclassError, ValueError, KeyError, OSError, ImportError) as error:
        raise ModelError(f"{folder}: transformers cannot read config.json: {error}") from error


def _find(name: str, revision: str | None) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ModelError(f"{name}@{revision}: a local folder has no revision; leave out '@{revision}'")
        return path.resolve()
    if path.exists():
        raise ModelError(f"{name}: is a file; expected a model folder or a Hub repository")
    if _IN_PACKAGE.fullmatch(name) and revision is None:
        return _packaged(name)
    if name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name):
        raise ModelError(f"{name}: no such folder")
    return _snapshot(name, revision)


def _packaged(name: str) -> Path:
    """Return a folder in a package, as recipes name it: `lora_eval:pocket/model`."""
    try:
        return resolve_path(name, Path.cwd())
    except InputError as error:
        raise ModelError(f"{name}: no such folder: {error}") from error


def _snapshot(name: str, revision: str | None) -> Path:
    """Return the Hub snapshot: the cached one, or a download where there is a network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    label = f"{name}@{revision}" if revision else name
    try:
        return Path(snapshot_download(name, revision=revision, ignore_patterns=_NOT_NEEDED))
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{label}: neither a folder here nor in the local Hub cache, and the Hub cannot be reached; "
            "download it first, or give the path of a folder"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{label}: neither a folder here nor a repository that the Hub gives: {cause}"
        ) from error
