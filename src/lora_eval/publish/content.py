"""What a path of a repository holds, here and on the Hub, told apart by hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lora_eval.fingerprint import sha256_file


@dataclass(frozen=True)
class Content:
    """What one path of the repository holds: a file on this disk, or bytes."""

    source: Path | bytes

    @property
    def size(self) -> int:
        """Size in bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal sha256 of the bytes: what the Hub knows large files by."""
        if isinstance(self.source, bytes):
            return hashlib.sha256(self.source).hexdigest()
        return sha256_file(self.source)

    @cached_property
    def blob_id(self) -> str:
        """Git's sha1 of the bytes: what the Hub knows small files by."""
        digest = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        if isinstance(self.source, bytes):
            digest.update(self.source)
            return digest.hexdigest()
        with self.source.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
        return digest.hexdigest()

    def read(self) -> bytes:
        """Return the bytes."""
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository's tree: `sha256` is None for a small file, which has a `blob_id` only."""

    size: int
    blob_id: str
    sha256: str | None

    def equals(self, content: Content) -> bool:
        """Whether the content has these bytes."""
        if self.size != content.size:
            return False
        return self.sha256 == content.sha256 if self.sha256 is not None else self.blob_id == content.blob_id


def differing(contents: Mapping[str, Content], tree: Mapping[str, RemoteFile]) -> list[str]:
    """Return the paths whose content is not in the tree, or differs there."""
    return [path for path, content in contents.items() if path not in tree or not tree[path].equals(content)]
