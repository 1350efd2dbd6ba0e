"""`lora-eval publish`: weights, card and records to the Hub, as one commit; and a check of what is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_eval.errors import CheckFailed, InputError

if TYPE_CHECKING:
    from lora_eval.publish import Finding, Published
    from lora_eval.publish.stage import Prepared
    from lora_eval.records import Comparison
    from lora_eval.records.publication import Benchmark


@click.command()
@click.option("--variant", type=click.Path(path_type=Path), metavar="DIR", help="Adapter or exported model.")
@click.option(
    "--comparison",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="comparison.json that measured it, or its folder.",
)
@click.option("--repo", metavar="USER/NAME", help="Repository on the Hub; made where there is none.")
@click.option("--private", is_flag=True, help="A new repository is private.")
@click.option("--adapter-only", "kind", flag_value="adapter", help="The variant must be an adapter.")
@click.option("--merged", "kind", flag_value="merged", help="The variant must be a merged model.")
@click.option("--gptq", "kind", flag_value="gptq", help="The variant must be a GPTQ model.")
@click.option("--awq", "kind", flag_value="awq", help="The variant must be an AWQ model.")
@click.option(
    "--base-model", metavar="OWNER/NAME[@REV]", help="The base's name on the Hub (default: as recorded)."
)
@click.option("--license", "licence", metavar="ID", help="Licence (default: the base's).")
@click.option("--license-name", help="Name of a licence without identifier (--license other).")
@click.option("--license-link", help="Where that licence can be read.")
@click.option("--data-license", metavar="ID", help="Licence of the training data, as the card says it.")
@click.option("--language", multiple=True, metavar="CODE", help="ISO 639-1 code; repeatable.")
@click.option(
    "--verification", type=click.Path(path_type=Path), metavar="FILE",
    help="verification.json of an export (default: found beside it).",
)  # fmt: skip
@click.option(
    "--override-gate", metavar="REASON", help="Publish in spite of a failed gate; the card says so."
)
@click.option("--samples", is_flag=True, help="Publish every prompt and answer too.")
@click.option(
    "--benchmark", "benchmarks", multiple=True, metavar="TASK=OWNER/DATASET[:TASK_ID]",
    help="The task is this benchmark of the Hub: its figure goes into .eval_results; repeatable.",
)  # fmt: skip
@click.option("--results", is_flag=True, help="Publish the comparison's rows as a dataset instead.")
@click.option("--check", metavar="REPO_OR_DIR", help="Make every number of a published card again.")
@click.option("--dry-run", is_flag=True, help="Say what would be uploaded; no network.")
@click.option("--json", "as_json", is_flag=True, help="Print what happened as JSON on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def command(
    variant: Path | None,
    comparison: Path | None,
    repo: str | None,
    check: str | None,
    results: bool,
    dry_run: bool,
    private: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> int:
    r"""Publish a variant with the records that its card rests on: one commit, or nothing.

    Refused, with every reason at once: an export that was not verified, a failed gate, a secret or a pickle
    in any file, a link out of the folder, a licence that the base forbids, a path of this machine. A second
    run uploads nothing. The token is the one of `hf auth login` or HF_TOKEN.

    Status 2: refused or impossible; 3: not verified, gate failed, or (--check) a number that does not follow.

    \b
    Example:
      lora-eval publish --variant ./adapter --comparison runs/mine --repo me/my-adapter --dry-run
      lora-eval publish --variant ./merged --comparison runs/mine --repo me/my-model --license apache-2.0
      lora-eval publish --check me/my-model
      lora-eval publish --results --comparison runs/mine --repo me/my-model-results
    """
    from lora_eval.publish.hub import quiet as without_bars

    without_bars()  # there is one of our own
    if check is not None:
        return _show_check(check, _check(check), as_json=as_json)
    if repo is None or comparison is None or (variant is None and not results):
        needed = "--comparison and --repo" if results else "--variant, --comparison and --repo"
        raise InputError(f"publish needs {needed}, or --check REPO_OR_DIR")
    path = comparison / "comparison.json" if comparison.is_dir() else comparison
    if results:
        from lora_eval.publish import gather_results

        prepared = gather_results(path, repo, options["licence"])
    else:
        assert variant is not None
        prepared = _prepare(variant, path, repo, options, online=not dry_run)
    if dry_run:
        _show_plan(prepared, as_json=as_json)
        return 0
    _show(_publish(prepared, private=private, quiet=quiet or as_json), as_json=as_json)
    return 0


def _prepare(
    variant: Path, comparison: Path, repo: str, options: dict[str, Any], *, online: bool
) -> Prepared:
    from lora_eval.publish import Options, prepare
    from lora_eval.publish.hub import Repository

    base, at, revision = (options["base_model"] or "").partition("@")
    found = Options(
        repo_id=repo,
        kind=options["kind"],
        base_model=base or None,
        base_model_revision=revision if at else None,
        license=options["licence"],
        license_name=options["license_name"],
        license_link=options["license_link"],
        ask_licence=Repository(repo).licence_of_base if online else None,
        data_license=options["data_license"],
        language=options["language"],
        verification=options["verification"],
        override=options["override_gate"],
        samples=options["samples"],
        benchmarks=dict(_benchmark(text) for text in options["benchmarks"]),
    )
    return prepare(variant, comparison, found)


def _benchmark(text: str) -> tuple[str, Benchmark]:
    from lora_eval.records.publication import Benchmark
    from lora_eval.schema import parse_record

    task, equals, where = text.partition("=")
    dataset, _, task_id = where.partition(":")
    if not equals or not task:
        raise InputError(f"--benchmark {text}: expected TASK=OWNER/DATASET[:TASK_ID]")
    found = {"dataset_id": dataset, "task_id": task_id or "default"}
    return task, parse_record(found, Benchmark, f"--benchmark {text}")


def _publish(prepared: Prepared, *, private: bool, quiet: bool) -> Published:
    from lora_eval.cli.progress import progress_bar
    from lora_eval.publish import publish

    with progress_bar(not quiet) as progress:
        return publish(prepared, private=private, progress=progress)


def _check(place: str) -> list[Finding]:
    import tempfile

    from lora_eval.publish import check_folder

    folder = Path(place)
    if folder.is_dir():
        return check_folder(folder, _again(folder))
    if place.startswith((".", "/", "~")) or place.count("/") != 1:
        raise InputError(f"--check {place}: no such folder, and no OWNER/NAME on the Hub")
    from lora_eval.publish.hub import Repository

    with tempfile.TemporaryDirectory() as temporary:
        downloaded = Repository(place).download(Path(temporary))
        return check_folder(downloaded, _again(downloaded))


def _again(folder: Path) -> Comparison | None:
    """The comparison made again from published rows; None where they were not published."""
    from lora_eval.compare import compare_loaded, load_stored
    from lora_eval.records import EvalSuite

    evaluation = folder / "evaluation"
    if not any(evaluation.glob("runs/*/samples.parquet")):
        return None
    stored = load_stored(evaluation)
    comparison, asked = stored.comparison, stored.comparison.suite
    methods = " ".join(pair.method for task in comparison.tasks for pair in task.pairs)
    known = {key: value for key, value in asked.items() if key in EvalSuite.model_fields or key == "schema"}
    return compare_loaded(
        stored.runs,
        suite=EvalSuite.model_validate(known) if "tasks" in known else None,
        pairs=list(dict.fromkeys((pair.a, pair.b) for task in comparison.tasks for pair in task.pairs)),
        training_runs={arm.name: [run.name for run in arm.runs] for arm in comparison.arms if arm.runs},
        method="bootstrap" if "BCa" in methods else "permutation" if "9,999" in methods else "auto",
        level=next((pair.level for task in comparison.tasks for pair in task.pairs), 0.95),
        margins={
            task.task: pair.margin
            for task in comparison.tasks
            for pair in task.pairs
            if pair.margin is not None
        },
        groups=asked.get("groups", {}),
        sequential=comparison.sequential,
    )


def _show_plan(prepared: Prepared, *, as_json: bool) -> None:
    import json

    files = {path: content.size for path, content in sorted(prepared.contents.items())}
    if as_json:
        click.echo(json.dumps({"repo_id": prepared.repo_id, "files": files, "dry_run": True}, indent=2))
        return
    for path, size in files.items():
        click.echo(f"{size:>14,}  {path}")
    if prepared.repo_type == "model" and prepared.base_license is None:
        click.echo(
            "the base's licence is not known here: it is asked for on the Hub before publishing", err=True
        )
    click.echo(f"{sum(files.values()):>14,}  bytes in {len(files)} files, for {prepared.repo_id}")


def _show(published: Published, *, as_json: bool) -> None:
    if as_json:
        import json
        from dataclasses import asdict

        click.echo(json.dumps(asdict(published), indent=2))
    elif not published.uploaded and not published.deleted:
        click.echo(f"{published.url}: nothing differs, nothing was uploaded (commit {published.commit[:8]})")
    else:
        gone = f", {len(published.deleted)} deleted" if published.deleted else ""
        click.echo(
            f"{published.url}: {len(published.uploaded)} files in commit {published.commit[:8]}{gone}; their "
            "checksums are those of the files here"
        )


def _show_check(place: str, findings: list[Finding], *, as_json: bool) -> int:
    if as_json:
        import json
        from dataclasses import asdict

        click.echo(
            json.dumps({"passed": not findings, "findings": [asdict(each) for each in findings]}, indent=2)
        )
    elif not findings:
        click.echo(f"{place}: every number follows from the records, every fingerprint from the files")
    for finding in [] if as_json else findings:
        click.echo(finding.text)
    return CheckFailed.exit_status if findings else 0
