"""Publish a variant: refuse what must not go out, then one commit, then look at what arrived."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_eval.errors import CheckFailed, HubError, InputError
from lora_eval.publish.content import Content, differing
from lora_eval.publish.contents import (
    PUBLICATION,
    gather_folder,
    gather_records,
    text_problems,
    with_publication,
)
from lora_eval.publish.hub import Repository, RepoType, check_repo_id
from lora_eval.publish.measured import Measured, Options
from lora_eval.publish.problems import arm_problems, gate_problems, input_problems, verification_problems
from lora_eval.publish.records import EVALUATION, portable, run_names
from lora_eval.publish.refusals import is_loaded
from lora_eval.publish.secrets import secrets_in_rows
from lora_eval.publish.sending import Progress
from lora_eval.records import Comparison, LoadedRun, Publication
from lora_eval.runstore import ROWS, has_run, read_run
from lora_eval.schema import read_record


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that will be in the repository, by path; and the licence of a model's base, where known."""

    repo_id: str
    contents: dict[str, Content]
    repo_type: RepoType = "model"
    base_license: str | None = None


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
    options = replace(options, base_license=options.base_license or _licence_of_base(variant, options))
    failed = [*verification_problems(variant), *gate_problems(variant, options)]
    publication = variant.publication(options)
    names = variant.names(publication)
    contents, problems = gather_folder(folder, publication, names)
    unfit = list(arm_problems(variant))
    problems += [*unfit, *input_problems(variant, options)]
    if unfit:
        _refuse(problems, failed)
    runs = _portable_runs(_runs(variant.comparison, comparison.parent), names)
    records = variant.portable_records(publication, runs)
    if options.samples:
        rows, found = _samples(variant.comparison, comparison.parent, runs)
        contents, problems = contents | rows, problems + found
    contents |= gather_records(records, runs, publication)
    problems += text_problems(contents)
    _refuse(problems, failed)
    whole = with_publication(contents, publication)
    return Prepared(options.repo_id, whole, base_license=options.base_license)


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
            raise HubError(f"{prepared.repo_id}: was created, but cannot be seen; look at the token's rights")
    elif private and not repository.is_private():
        raise InputError(
            f"--private: {prepared.repo_id} is there already, and everybody can read it; make it private in "
            "its settings, or leave the option out"
        )
    tree = repository.tree(head)
    changed = differing(prepared.contents, tree)
    before = _published_before(repository, tree)
    gone = sorted(before - prepared.contents.keys())
    _refuse_foreign(prepared, tree.keys() - before - prepared.contents.keys())
    if not changed and not gone:
        return Published(repository.url, head, (), ())
    commit = repository.commit(
        {path: prepared.contents[path] for path in changed}, gone, head,
        f"lora-eval: {len(changed)} files", progress,
    )  # fmt: skip
    wrong = differing(prepared.contents, repository.tree(commit))
    if wrong:
        raise HubError(
            f"{prepared.repo_id}: in the commit {commit[:8]} {', '.join(wrong)} differ from what was sent; "
            "run the command again"
        )
    return Published(repository.url, commit, tuple(changed), tuple(gone))


def _refuse_foreign(prepared: Prepared, foreign: Iterable[str]) -> None:
    """Whoever loads the repository would load these too, and the fingerprint would be another."""
    loaded = sorted(path for path in foreign if is_loaded(path))
    if loaded and prepared.repo_type == "model":
        raise InputError(
            f"{prepared.repo_id} holds files of somebody else that would be loaded with this model: "
            f"{', '.join(loaded)}; delete them there, or choose another --repo"
        )


def _published_before(repository: Repository, tree: Mapping[str, Any]) -> set[str]:
    """Paths that an earlier publication of ours lists, among those in the tree."""
    if PUBLICATION not in tree:
        return set()
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        path = repository.file(PUBLICATION, Path(place))
        return set(read_record(path, Publication).files) & tree.keys()


def _licence_of_base(variant: Measured, options: Options) -> str | None:
    """The licence in the base's card: in its folder, else on the Hub where it may be asked."""
    from lora_eval.exporters.carry import licence_of

    base = next((arm for arm in variant.comparison.arms if arm.kind == "base"), None)
    found = licence_of(Path(base.path)) if base is not None else None
    name = variant.base_model(options)
    return options.ask_licence(name) if found is None and options.ask_licence and name else found


def _refuse(problems: Iterable[str], failed: Iterable[CheckFailed]) -> None:
    lines, checks = list(dict.fromkeys(problems)), list(failed)
    if lines:
        raise InputError("\n".join([*lines, *map(str, checks)]))
    if checks:
        raise type(checks[0])("\n".join(map(str, checks)))


def _runs(comparison: Comparison, folder: Path) -> dict[str, LoadedRun]:
    """The stored runs beside the comparison, as far as they are there."""
    return {
        name: read_run(folder / "runs" / name)
        for name in run_names(comparison)
        if has_run(folder / "runs" / name)
    }


def _portable_runs(runs: Mapping[str, LoadedRun], names: Mapping[str, str]) -> dict[str, LoadedRun]:
    return {name: LoadedRun(portable(loaded.run, names), loaded.rows) for name, loaded in runs.items()}


def _samples(
    comparison: Comparison, folder: Path, runs: Mapping[str, LoadedRun]
) -> tuple[dict[str, Content], list[str]]:
    """Every arm's rows, for who asked to publish them; and what in them must not be published."""
    contents, problems = {}, []
    for name, loaded in runs.items():
        contents[f"{EVALUATION}/runs/{name}/{ROWS}"] = Content(folder / "runs" / name / ROWS)
        problems += [
            f"{folder / 'runs' / name / ROWS}: {problem}" for problem in secrets_in_rows(loaded.rows)
        ]
    missing = [name for name in run_names(comparison) if name not in runs]
    if missing:
        problems.append(f"--samples: {folder}/runs holds no rows of {', '.join(missing)}")
    return contents, problems
