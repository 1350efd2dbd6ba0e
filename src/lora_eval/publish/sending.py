"""Files on their way to the Hub: large ones first, read in pieces, hashed once, one bar for all of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_eval.errors import HubError
from lora_eval.publish.content import Content

_LARGE = 1 << 20  # bytes; smaller files go with the commit
Progress = Callable[[str, int, int], None]


def add_operation(path: str, content: Content) -> Any:
    """Return huggingface_hub's operation that adds the content. It knows the hash already, the one by which
    the content was told from what is on the Hub: no file is read again for it.
    """
    from huggingface_hub import CommitOperationAdd

    source = content.source if isinstance(content.source, bytes) else str(content.source)
    operation = CommitOperationAdd(path, source)
    operation.upload_info.sha256 = bytes.fromhex(content.sha256)
    return operation


@dataclass(frozen=True, slots=True)
class Sending:
    """Uploads to one repository; no commit refers to what was uploaded yet."""

    api: Any
    repo_id: str
    repo_type: str
    progress: Progress

    def large_first(self, added: Mapping[str, Any], contents: Mapping[str, Content]) -> None:
        """Upload the large files one by one, then whatever else the Hub stores beside its commits.

        Raises:
            HubError: the repository's .gitignore leaves out a file, so that a commit would lack it.
        """
        large = [path for path, content in contents.items() if content.size >= _LARGE]
        total, done = sum(contents[path].size for path in large), 0
        for path in sorted(large, key=lambda each: -contents[each].size):
            self._send(added[path], done, total)
            done += contents[path].size
        self.api.preupload_lfs_files(
            self.repo_id, additions=list(added.values()), repo_type=self.repo_type, free_memory=False
        )
        ignored = [path for path, operation in added.items() if getattr(operation, "_should_ignore", False)]
        if ignored:
            raise HubError(
                f"{self.repo_id}: its .gitignore leaves out {', '.join(ignored)}; nothing was published. "
                "Remove these lines from it, and run the command again"
            )

    def _send(self, operation: Any, done: int, total: int) -> None:
        """Upload one file, and tell after each piece how many MiB of all are there."""
        what, source = f"uploading {operation.path_in_repo} (MiB)", operation.path_or_fileobj

        def told(position: int) -> None:
            self.progress(what, (done + position) >> 20, total >> 20)

        if isinstance(source, bytes):
            self._upload(operation)
        else:
            with Counted(source, told) as file:
                operation.path_or_fileobj = file
                self._upload(operation)
            operation.path_or_fileobj = source
        told(operation.upload_info.size)

    def _upload(self, operation: Any) -> None:
        self.api.preupload_lfs_files(
            self.repo_id, additions=[operation], repo_type=self.repo_type, free_memory=False
        )


class Counted(io.BufferedReader):
    """A file that tells after each read how far it has been read."""

    def __init__(self, path: str, told: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(path))
        self._told = told

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to `size` bytes."""
        data = super().read(size)
        self._told(self.tell())
        return data
