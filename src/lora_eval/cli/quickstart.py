"""`lora-eval quickstart`: every stage on the embedded model, through the code that a real run takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_eval.errors import OutputError, VerificationFailed

if TYPE_CHECKING:
    from lora_eval.compare import Stored

Progress = Callable[[str, int, int], None]
_SETTINGS = "quickstart.json"
_GROUP_SIZE = 64  # every layer of the embedded model has a multiple of 64 input columns


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("quickstart"), show_default=True,
    help="Folder for everything it makes: new, empty, or an unfinished quickstart to resume.",
)  # fmt: skip
@click.option(
    "--recipe", default="pocket-ticket", show_default=True,
    help="pocket-ticket-only leaves the general chats out: see what it breaks.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of training and calibration.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N items of every task.")
@click.option("--json", "as_json", is_flag=True, help="Print comparison.json on stdout.")
@click.option("-q", "--quiet", "silent", is_flag=True, help="Print the verdict's sentence only.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the libraries log.")
def command(
    out: Path, recipe: str, seed: int, limit: int | None, as_json: bool, silent: bool, verbose: bool
) -> None:
    r"""Train, compare, merge, quantize and verify the embedded model: minutes on two cores, no network.

    A small chat model that is in the package learns to turn support messages into tickets. Base, adapter,
    merged and GPTQ model then answer the same items, and both exports are checked against what was measured.
    Status 3: an export is not the model that was measured. Interrupted, the same command resumes.

    OUT holds adapter/, merged/, gptq/, runs/, comparison.json, verification-*.json, report.html, report.md.

    \b
    Example:
      lora-eval quickstart
      lora-eval quickstart --recipe pocket-ticket-only --out damaged
    """
    import os

    from lora_eval.cli.progress import progress_bar

    started = time.perf_counter()
    # Before torch reads it. The embedded model's matrices are too small for two threads, which on cores that
    # are shared wait for each other: 393 s of processor time for training, against 97 s with one thread.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Everything is in the package: a machine without a network must not be asked to look for more.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    claim(out, {"recipe": recipe, "seed": seed, "limit": limit})
    notify: Callable[[str], None] = (
        (lambda _: None) if silent or as_json else (lambda text: click.echo(text, err=True))
    )
    with progress_bar(not silent) as progress:
        stored = run_stages(out, recipe, seed, limit, verbose=verbose, progress=progress, notify=notify)
    show(stored, out, time.perf_counter() - started, as_json=as_json, silent=silent)
    failed = [record.candidate.path for record in stored.verifications if not record.passed]
    if failed:
        raise VerificationFailed(
            f"not the model that was measured: {', '.join(failed)}; see {out / 'report.html'}"
        )


def claim(out: Path, settings: dict[str, Any]) -> None:
    """Make `out` this quickstart's folder, new or resumed.

    Raises:
        OutputError: it holds something else, or a quickstart with other settings.
    """
    import json

    from lora_eval.registry import own_version
    from lora_eval.schema import load_json, write_text

    settings = settings | {"lora_eval": own_version()}
    path = out / _SETTINGS
    if path.is_file():
        if load_json(path) != settings:
            raise OutputError(f"{out}: holds a quickstart with other settings ({path}); give a new --out")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: not empty, and no quickstart (no {_SETTINGS}); give a new --out")
    write_text(path, json.dumps(settings, indent=2) + "\n")


def run_stages(
    out: Path,
    recipe: str,
    seed: int,
    limit: int | None,
    *,
    verbose: bool,
    progress: Progress,
    notify: Callable[[str], None],
) -> Stored:
    """Run every stage whose result is not there yet; returns what the folder then holds."""
    from lora_eval.compare import load_stored, write_reports

    stages: Sequence[tuple[str, Path, Callable[[], object]]] = (
        (
            "1/5 QLoRA training (NF4 base, about a minute)",
            out / "adapter",
            lambda: train_adapter(recipe, seed, out / "adapter", verbose, progress),
        ),
        (
            "2/5 merging onto the base as it was quantized in training",
            out / "merged",
            lambda: export_model("merge", out / "merged", verbose, progress, adapter=out / "adapter"),
        ),
        (
            "3/5 GPTQ, 4 bits",
            out / "gptq",
            lambda: export_model("gptq", out / "gptq", verbose, progress, model=out / "merged", seed=seed),
        ),
        (
            "4/5 base, adapter, merged and GPTQ model on the same items",
            out / "comparison.json",
            lambda: compare_arms(out, limit, verbose, progress),
        ),
        (
            "5/5 are the exports the model that was measured?",
            out / "verification-gptq.json",
            lambda: verify_exports(out, verbose, progress),
        ),
    )
    for heading, result, run in stages:
        if result.exists():
            notify(f"{heading}: there already")
            continue
        notify(heading)
        started = time.perf_counter()
        run()
        notify(f"    {time.perf_counter() - started:.0f} s")
    stored = load_stored(out)
    write_reports(stored, out)
    return stored


def base_folder() -> Path:
    """Return the folder of the embedded base model."""
    from lora_eval.pocket import model_path

    return model_path()


def train_adapter(recipe: str, seed: int, out: Path, verbose: bool, progress: Progress) -> None:
    """Train the adapter and prove that the saved one is the live one."""
    from lora_eval.models.quiet import quiet, without_gptqmodel

    with quiet(verbose), without_gptqmodel():
        from lora_eval.recipes import load_recipe
        from lora_eval.train import train

        resolved = load_recipe(recipe, [f"training.seed={seed}"])
        train(
            resolved, base_folder(), out, base_name=resolved.recipe.base, verbose=verbose, progress=progress
        )


def export_model(
    name: str,
    out: Path,
    verbose: bool,
    progress: Progress,
    *,
    adapter: Path | None = None,
    model: Path | None = None,
    seed: int | None = None,
) -> None:
    """Export the adapter on its base, or a model folder, with an exporter of ours."""
    from lora_eval.export import export
    from lora_eval.models.quiet import quiet

    options = {} if model is None else {"group_size": _GROUP_SIZE, "seed": seed}
    with quiet(verbose):
        export(
            name, base=model or base_folder(), adapter=adapter, out=out, options=options, progress=progress
        )


def compare_arms(out: Path, limit: int | None, verbose: bool, progress: Progress) -> None:
    """Score the four arms on the embedded suite and write the comparison."""
    from lora_eval.compare import compare_loaded, load_runs, write_comparison
    from lora_eval.engines.store import ResultStore
    from lora_eval.evaluate import Arms, FolderArm, evaluate_arms, open_suite
    from lora_eval.models.quiet import quiet

    arms = Arms(
        base=base_folder(),
        adapters={"adapter": out / "adapter"},
        others=(FolderArm("merged", "merged", out / "merged"), FolderArm("gptq", "gptq", out / "gptq")),
    )
    with quiet(verbose):
        suite = open_suite(["pocket"], limit=limit)
        # Not the user's own store: everything a quickstart makes lies in its folder.
        with ResultStore(out / "results.sqlite") as store:
            found = evaluate_arms(arms, suite, out / "runs", progress=progress, store=store)
    runs = load_runs(found.runs)
    comparison = compare_loaded(
        runs,
        suite=suite.record,
        groups=suite.groups,
        controls=found.controls,
        timing=found.timing,
        notes=found.notes,
        title="Quickstart: the embedded model before and after fine-tuning, and as it would be shipped",
    )
    created = datetime.now(UTC).isoformat(timespec="seconds")
    comparison = comparison.model_copy(update={"created": created})
    write_comparison(comparison, runs, out)


def verify_exports(out: Path, verbose: bool, progress: Progress) -> None:
    """Compare merged and GPTQ model with the adapter as it was scored, on the suite's own prompts."""
    from lora_eval.models.quiet import quiet
    from lora_eval.verify import ArmPath, Options, verify

    reference = ArmPath("adapter", "adapter", out / "adapter", base=base_folder())
    prompts = out / "runs" / "adapter"
    merged, gptq = ArmPath("merged", "merged", out / "merged"), ArmPath("gptq", "gptq", out / "gptq")
    with quiet(verbose):
        verify(
            reference, merged, prompts, out / "verification-merged.json", Options(expected="equal"), progress
        )
        verify(reference, gptq, prompts, out / "verification-gptq.json", Options(expected="near"), progress)


def show(stored: Stored, out: Path, seconds: float, *, as_json: bool, silent: bool) -> None:
    """Print what was found, and where the report is."""
    from rich.console import Console

    from lora_eval.reports.terminal import print_comparison
    from lora_eval.reports.words import headline
    from lora_eval.schema import dump_record

    if as_json:
        click.echo(dump_record(stored.comparison), nl=False)
        return
    if silent:
        click.echo(headline(stored.comparison))
        return
    print_comparison(stored.comparison, Console(), stored.verifications)
    click.echo(f"\n{seconds:.0f} s. The report, with every item that changed: {out / 'report.html'}")
