"""Where things lie in a deployment's folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from lora_eval.errors import InputError
from lora_eval.models.locate import adapter_weights
from lora_eval.servers.inputs import Adapter

_DIGITS = 12
# Not its tokenizer: SGLang refuses an adapter whose folder has an added_tokens.json beyond the vocabulary,
# and no server reads anything else of it.
_COPIED = ("adapter_config.json", "lineage.json")


@dataclass(frozen=True, slots=True)
class Mount:
    """What a container mounts, and the model's path below that."""

    source: str
    inside: str


def adapter_folder(adapter: Adapter) -> str:
    """Return the adapter's folder, named by its contents.

    A server's prefix cache is keyed by name and path: other weights under the same path would be answered
    from the old ones (https://github.com/vllm-project/vllm/issues/42125, measured with 0.32.0).
    """
    digest = adapter.fingerprint.removeprefix("sha256:")
    return f"adapters/{adapter.name}-{digest[:_DIGITS]}"


def copy_adapter(adapter: Adapter, out: Path) -> list[str]:
    """Copy what a server reads of the adapter; returns the files, relative to `out`."""
    folder = adapter_folder(adapter)
    (out / folder).mkdir(parents=True)
    names = [*_COPIED, adapter_weights(adapter.folder).name]
    present = [name for name in names if (adapter.folder / name).is_file()]
    for name in present:
        shutil.copyfile(adapter.folder / name, out / folder / name)
    return [f"{folder}/{name}" for name in present]


def mount_of(folder: Path) -> Mount:
    """Return what to mount for a model's folder: itself, or the cache around a snapshot of the Hub, whose
    files are links to its blobs.

    Raises:
        InputError: its files are links to somewhere else, which a container would not see.
    """
    root = folder.resolve()
    outside = [path for path in root.iterdir() if path.is_symlink() and root not in path.resolve().parents]
    if not outside:
        return Mount(str(root), "")
    cache = root.parent.parent
    if root.parent.name == "snapshots" and all(cache in path.resolve().parents for path in outside):
        return Mount(str(cache), f"/snapshots/{root.name}")
    raise InputError(
        f"{outside[0]}: links to {outside[0].resolve()}, which a container does not see; copy the model with "
        "its files, or use --target command"
    )
