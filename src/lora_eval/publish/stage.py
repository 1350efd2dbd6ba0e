"""Publish a variant: refuse what must not go out, then one commit, then look at what arrived."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_eval.errors import CheckFailed, InputError
from lora_eval.publish.content import Content, differing
from lora_eval.publish.contents import (
    PUBLICATION,
    gather_folder,
    gather_records,
    text_problems,
    with_publication,
)
from lora_eval.publish.hub import Progress, Repository, RepoType, check_repo_id
from lora_eval.publish.measured import Measured, Options
from lora_eval.publish.records import EVALUATION, portable
from lora_eval.publish.secrets import secrets_in_rows
from lora_eval.records import Comparison, LoadedRun, Publication
from lora_eval.runstore import HEADER, ROWS, has_run, read_run
from lora_eval.schema import dump_record, read_record


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that will be in the repository, by path."""

    repo_id: str
    contents: dict[str, Content]
    repo_type: RepoType = "model"


@dataclass(frozen=True, slots=True)
class Published:
    """What happened: the commit that the repository is at, and the paths that were uploaded or deleted."""

    url: str
    commit: str
    uploaded: tuple[str, ...]
    deleted: tuple[str, ...]


def prepare(folder: Path, comparison: Path, options: Options) -> Prepared:
    """Return what would be published, without any network.

    Raises:
        InputError: something must not or cannot be published; all reasons at once.
        VerificationFailed, GateFailed: an export that was not verified, a gate that failed.
    """
    check_repo_id(options.repo_id)
    variant = Measured.read(folder, comparison, options)
    failed = [*variant.verification_problems(), *variant.gate_problems(options)]
    publication = variant.publication(options)
    contents, problems = gather_folder(folder, publication)
    problems += variant.input_problems(options)
    records = variant.portable_records(publication)
    runs = _portable_runs(_runs(variant.comparison, comparison.parent), variant.names(publication))
    if options.samples:
        rows, found = _samples(variant.comparison, comparison.parent, runs)
        contents, problems = contents | rows, problems + found
    contents |= gather_records(records, runs, publication)
    problems += text_problems(contents)
    _refuse(problems, failed)
    return Prepared(options.repo_id, with_publication(contents, publication))


def publish(prepared: Prepared, *, private: bool, progress: Progress) -> Published:
    """Bring the repository to the prepared contents: one commit, or none where nothing differs.

    Files of an earlier publication of ours that are no longer there are deleted; files of others stay.

    Raises:
        HubError: nothing was published, or what arrived is not what was sent.
    """
    repository = Repository(prepared.repo_id, prepared.repo_type)
    repository.check_token()
    head = repository.head()
    if head is None:
        repository.create(private=private)
        head = repository.head()
        if head is None:
            raise InputError(
                f"{prepared.repo_id}: was created, but cannot be seen; look at the token's rights"
            )
    tree = repository.tree(head)
    changed = differing(prepared.contents, tree)
    gone = sorted(_published_before(repository, tree) - prepared.contents.keys())
    if not changed and not gone:
        return Published(repository.url, head, (), ())
    commit = repository.commit(
        {path: prepared.contents[path] for path in changed}, gone, head,
        f"lora-eval: {len(changed)} files", progress,
    )  # fmt: skip
    wrong = differing(prepared.contents, repository.tree(commit))
    if wrong:
        raise InputError(
            f"{prepared.repo_id}: in the commit {commit[:8]} {', '.join(wrong)} differ from what was sent; "
            "run the command again"
        )
    return Published(repository.url, commit, tuple(changed), tuple(gone))


def _published_before(repository: Repository, tree: Mapping[str, Any]) -> set[str]:
    """Paths that an earlier publication of ours lists, among those in the tree."""
    if PUBLICATION not in tree:
        return set()
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        path = repository.file(PUBLICATION, Path(place))
        return set(read_record(path, Publication).files) & tree.keys()


def _refuse(problems: Iterable[str], failed: Iterable[CheckFailed]) -> None:
    lines, checks = list(dict.fromkeys(problems)), list(failed)
    if lines:
        raise InputError("\n".join([*lines, *map(str, checks)]))
    if checks:
        raise type(checks[0])("\n".join(map(str, checks)))


def _runs(comparison: Comparison, folder: Path) -> dict[str, LoadedRun]:
    """The stored runs beside the comparison, as far as they are there."""
    names = [run.name for arm in comparison.arms for run in arm.runs or (arm,)]
    return {name: read_run(folder / "runs" / name) for name in names if has_run(folder / "runs" / name)}


def _portable_runs(runs: Mapping[str, LoadedRun], names: Mapping[str, str]) -> dict[str, LoadedRun]:
    return {name: LoadedRun(portable(loaded.run, names), loaded.rows) for name, loaded in runs.items()}


def _samples(
    comparison: Comparison, folder: Path, runs: Mapping[str, LoadedRun]
) -> tuple[dict[str, Content], list[str]]:
    """Every arm's header and rows, for who asked to publish them; and what in them must not be published."""
    contents, problems = {}, []
    for name, loaded in runs.items():
        place = f"{EVALUATION}/runs/{name}"
        contents[f"{place}/{HEADER}"] = Content(dump_record(loaded.run).encode())
        contents[f"{place}/{ROWS}"] = Content(folder / "runs" / name / ROWS)
        problems += [
            f"{folder / 'runs' / name / ROWS}: {problem}" for problem in secrets_in_rows(loaded.rows)
        ]
    missing = [run.name for arm in comparison.arms for run in arm.runs or (arm,) if run.name not in runs]
    if missing:
        problems.append(f"--samples: {folder}/runs holds no rows of {', '.join(missing)}")
    return contents, problems
