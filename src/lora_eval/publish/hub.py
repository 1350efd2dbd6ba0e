"""The Hub: the home of huggingface_hub. One commit or none, and no commit twice.

`upload_folder` is not used: with xet it publishes in several commits and half a folder when one fails
(huggingface_hub 2.4, measured). Here large files go first and are referenced by nothing until one commit
names them all, made on the parent that was looked at.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lora_eval.errors import HubError, InputError
from lora_eval.publish.content import Content, RemoteFile, differing
from lora_eval.publish.sending import Progress, Sending, add_operation

RepoType = Literal["model", "dataset"]


class Repository:
    """One repository on the Hub (`HF_ENDPOINT`, and the token that `hf auth login` or `HF_TOKEN` gives)."""

    def __init__(self, repo_id: str, repo_type: RepoType = "model") -> None:
        import os

        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        import huggingface_hub
        from huggingface_hub import constants

        # With xet a refused transfer raises ConnectionError and never falls back (2.4, measured).
        constants.HF_HUB_DISABLE_XET = True
        self.repo_id, self.repo_type = check_repo_id(repo_id), repo_type
        self._api: Any = huggingface_hub.HfApi(library_name="lora-eval")

    @property
    def url(self) -> str:
        """Address of the repository's page."""
        kind = "datasets/" if self.repo_type == "dataset" else ""
        return f"{self._api.endpoint}/{kind}{self.repo_id}"

    def check_token(self) -> None:
        """HubError unless there is a token that may write to the repository's owner."""
        owner = self.repo_id.partition("/")[0]
        with self._told("asking who the token belongs to"):
            found = self._api.whoami(cache=False)
        token = (found.get("auth") or {}).get("accessToken") or {}
        if token.get("role") == "read":
            raise HubError("the token may only read; make one with write access and log in with it")
        names = [found.get("name"), *(each.get("name") for each in found.get("orgs") or ())]
        if owner not in names:
            known = ", ".join(name for name in names if name)
            raise HubError(f"--repo {self.repo_id}: the token's owner {known} does not write for '{owner}'")
        if token.get("role") == "fineGrained" and not _may_write(token.get("fineGrained") or {}, owner, self):
            raise HubError(
                f"the token (fine-grained) has no right to write to {self.repo_id}; grant repo.write"
            )

    def head(self) -> str | None:
        """Return the newest commit of the main branch; None where there is no such repository."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        with self._told("looking at the repository"):
            try:
                return str(self._api.repo_info(self.repo_id, repo_type=self.repo_type).sha)
            except GatedRepoError:
                raise
            except RepositoryNotFoundError:
                return None

    def is_private(self) -> bool:
        """Whether only its owner sees the repository."""
        with self._told("looking at the repository"):
            return bool(self._api.repo_info(self.repo_id, repo_type=self.repo_type).private)

    def create(self, *, private: bool) -> None:
        """Make the repository; it may be there already."""
        with self._told("creating the repository"):
            self._api.create_repo(
                self.repo_id, repo_type=self.repo_type, private=private or None, exist_ok=True
            )

    def tree(self, commit: str) -> dict[str, RemoteFile]:
        """Return every file of a commit by its path."""
        with self._told("listing the repository's files"):
            listed = self._api.list_repo_tree(
                self.repo_id, recursive=True, revision=commit, repo_type=self.repo_type
            )
            return {
                entry.path: RemoteFile(entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None)
                for entry in listed
                if hasattr(entry, "blob_id")
            }

    def licence_of_base(self, base: str) -> str | None:
        """Return the licence that a model's card on the Hub names; None where there is none."""
        from huggingface_hub.errors import RepositoryNotFoundError

        with self._told(f"asking for the licence of {base}"):
            try:
                card = self._api.model_info(base).card_data
            except RepositoryNotFoundError:
                return None
        found = getattr(card, "license", None)
        found = found[0] if isinstance(found, list) and len(found) == 1 else found
        return found if isinstance(found, str) else None

    def download(self, folder: Path) -> Path:
        """Download the newest commit into a folder; returns it."""
        with self._told("downloading the repository"):
            return Path(self._api.snapshot_download(self.repo_id, repo_type=self.repo_type, local_dir=folder))

    def file(self, path: str, folder: Path) -> Path:
        """Download one file of the newest commit into a folder; returns where it lies."""
        with self._told(f"downloading {path}"):
            return Path(
                self._api.hf_hub_download(self.repo_id, path, repo_type=self.repo_type, local_dir=folder)
            )

    def commit(
        self,
        contents: Mapping[str, Content],
        deleted: Sequence[str],
        parent: str,
        message: str,
        progress: Progress,
    ) -> str:
        """Upload the contents and delete files, as one commit on `parent`; returns the commit.

        An answer that got lost is found again by looking: nothing is committed twice.

        Raises:
            HubError: nothing was published: a transfer failed, or another commit came in between (who made
                it, and what it says, is told).
        """
        from huggingface_hub import CommitOperationDelete

        added = {path: add_operation(path, content) for path, content in contents.items()}
        send = Sending(self._api, self.repo_id, self.repo_type, progress)
        with self._told("uploading"):
            send.large_first(added, contents)
        operations = [*added.values(), *(CommitOperationDelete(path) for path in deleted)]
        try:
            with self._told("making the commit"), warnings.catch_warnings():
                # Rows of samples beside weights are meant.
                warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")
                found = self._api.create_commit(
                    self.repo_id,
                    operations,
                    commit_message=message,
                    repo_type=self.repo_type,
                    parent_commit=parent,
                )
            return str(found.oid)
        except HubError as error:
            return self._found_again(contents, deleted, parent, error)

    def _found_again(
        self, contents: Mapping[str, Content], deleted: Sequence[str], parent: str, error: HubError
    ) -> str:
        """The commit whose answer was lost; else an error that says what is there instead."""
        newer = self._since(parent)
        if newer == []:
            raise HubError(f"{error}; nothing was published, the same command tries again") from error
        for commit in newer or ():
            tree = self.tree(commit.commit_id)
            if not differing(contents, tree) and not set(deleted) & tree.keys():
                return str(commit.commit_id)
        raise HubError(
            f"{self.repo_id} was changed by somebody else: {self._changes(newer, parent)}; nothing was "
            "published. Look at the change, and run the command again to publish on top of it"
        ) from error

    def _since(self, parent: str) -> list[Any] | None:
        """The commits after the parent, newest first; None where the history no longer holds it."""
        with self._told("listing the commits"):
            commits = list(self._api.list_repo_commits(self.repo_id, repo_type=self.repo_type))
        known = [commit.commit_id for commit in commits]
        return commits[: known.index(parent)] if parent in known else None

    def _changes(self, newer: list[Any] | None, parent: str) -> str:
        """Who committed, with which title, and which files differ by it."""
        if newer is None:
            return "its history no longer holds the commit that was looked at"
        commits = "; ".join(
            f"'{commit.title}' by {', '.join(commit.authors) or 'unknown'} ({commit.commit_id[:8]})"
            for commit in newer[:5]
        )
        before, after = self.tree(parent), self.tree(newer[0].commit_id)
        paths = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
        more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
        return f"{commits}, which changed {', '.join(paths[:5]) or 'no file'}{more}"

    @contextlib.contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """Turn what huggingface_hub and its HTTP client raise into HubError, without any token in it."""
        import httpx2
        from huggingface_hub import get_token
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

        try:
            yield
        except OfflineModeIsEnabled as error:
            raise HubError(f"{doing}: HF_HUB_OFFLINE is set; unset it to publish") from error
        except LocalTokenNotFoundError as error:
            raise HubError(
                f"{doing}: no token; log in with `hf auth login`, or set HF_TOKEN, with write access"
            ) from error
        # KeyError, AssertionError: an answer lacks what huggingface_hub takes for granted.
        except (
            HfHubHTTPError, httpx2.HTTPError, RuntimeError, ValueError, OSError, KeyError, AssertionError
        ) as error:  # fmt: skip
            text = _first_lines(error)
            if isinstance(error, RuntimeError) and error.__cause__ is not None:  # it names the file only
                text = f"{text} {_first_lines(error.__cause__)}"
            token = get_token()
            text = text.replace(token, "***") if token else text
            raise HubError(f"{self.repo_id}: {doing} failed: {text}") from error


def quiet() -> None:
    """From now on huggingface_hub shows no progress of its own."""
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()


def check_repo_id(repo_id: str) -> str:
    """Return a name of the form OWNER/NAME.

    Raises:
        InputError: it is another, or one that the Hub forbids.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"--repo {repo_id}: {_first_lines(error)}") from error
    if repo_id.count("/") != 1:
        raise InputError(f"--repo {repo_id}: expected USER/NAME or ORGANIZATION/NAME")
    return repo_id


def _may_write(rights: Mapping[str, Any], owner: str, repository: Repository) -> bool:
    """Whether a fine-grained token has `repo.write` for the owner, or for this repository."""
    for scope in rights.get("scoped") or ():
        name = (scope.get("entity") or {}).get("name")
        if name in (owner, repository.repo_id) and "repo.write" in (scope.get("permissions") or ()):
            return True
    return "repo.write" in (rights.get("global") or ())


def _first_lines(error: BaseException) -> str:
    """The error's text on one line, without the advice that follows an empty line."""
    text = str(error).strip().partition("\n\n")[0]
    return " ".join(text.split())[:300] or type(error).__name__
