"""One identity for a set of weights: sha256 over the files that decide what the model answers.

Hashed: weights, config, adapter config, tokenizer, chat template, generation settings, the model's own code.
Not hashed: README, lineage, optimizer and trainer state, and keys that differ between two writes of the same
model (where its base lay, a temporary path that gptqmodel stores, the version of the library that wrote it).
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# Not every *.bin: the trainer leaves training_args.bin, accelerate optimizer.bin and scheduler.bin.
_PATTERNS = ("*.safetensors", "pytorch_model*.bin", "adapter_model*.bin", "*.gguf", "*.py")
_SETTINGS = (
    "config.json",
    "adapter_config.json",
    "quantize_config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
# gptqmodel writes a random temporary folder; transformers and peft write their own version.
_VOLATILE_KEYS = {
    "offload_to_disk_path",
    "transformers_version",
    "peft_version",
    "_name_or_path",
    "name_or_path",
    "base_model_name_or_path",
}
_WINDOW = 1 << 26  # bytes of a file that are hashed at a time; a multiple of any page size
_AT_ONCE = min(4, os.cpu_count() or 1)  # files
_KNOWN: dict[tuple[int, int, int, int], str] = {}  # digests of this process, by the file's state
# PEFT keeps these as sets and writes them in another order in every process.
_SETS = {"target_modules", "exclude_modules", "modules_to_save"}


def fingerprint_folder(folder: Path) -> str:
    """Return `sha256:...` of a model or adapter folder; equal folders give equal text on every machine."""
    digest = hashlib.sha256()
    paths = sorted(_identity_files(folder), key=lambda item: item.name)
    with ThreadPoolExecutor(_AT_ONCE, "digest") as pool:  # one core digests 1.9 GB a second
        for path, found in zip(paths, pool.map(_file_digest, paths), strict=True):
            digest.update(path.name.encode() + b"\0" + found.encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"


def fingerprint_data(data: Any) -> str:
    """Return `sha256:...` of JSON-like data; key order does not matter."""
    text = json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def sha256_text(text: str) -> str:
    """Return the hexadecimal sha256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hexadecimal sha256 of a file's bytes. A file whose digest this process knows is not read
    again, under another name neither, while its size and time of change are the same.

    Its bytes are mapped, not read: the copy into a buffer of ours costs a fifth to a third of what the digest
    does.
    """
    stat = path.stat()
    known = _KNOWN.get(_state(stat))
    if known is not None:
        return known
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for start in range(0, stat.st_size, _WINDOW):
            length = min(_WINDOW, stat.st_size - start)
            with mmap.mmap(file.fileno(), length, offset=start, access=mmap.ACCESS_READ) as window:
                if hasattr(mmap, "MADV_SEQUENTIAL"):
                    window.madvise(mmap.MADV_SEQUENTIAL)
                digest.update(window)
    return _KNOWN.setdefault(_state(stat), digest.hexdigest())


def remember_digest(path: Path, digest: str) -> None:
    """Let `sha256_file` know the digest of a file's bytes as they were just written."""
    _KNOWN[_state(path.stat())] = digest


def _state(stat: os.stat_result) -> tuple[int, int, int, int]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _identity_files(folder: Path) -> Iterable[Path]:
    for pattern in _PATTERNS:
        yield from folder.glob(pattern)
    for name in _SETTINGS:
        if (folder / name).is_file():
            yield folder / name


def _file_digest(path: Path) -> str:
    if path.suffix != ".json" or path.name == "tokenizer.json":
        return sha256_file(path)
    try:
        data = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return sha256_file(path)
    return fingerprint_data(_without_volatile(data))


def _without_volatile(data: Any) -> Any:
    if isinstance(data, dict):
        return {
            key: sorted(value) if key in _SETS and isinstance(value, list) else _without_volatile(value)
            for key, value in data.items()
            if key not in _VOLATILE_KEYS
        }
    if isinstance(data, list):
        return [_without_volatile(item) for item in data]
    return data
