"""`lora-eval train`: an adapter from a recipe, saved whole and proven to be what was trained."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_eval.errors import InputError

if TYPE_CHECKING:
    from lora_eval.records import TrainingLog
    from lora_eval.train import TrainResult


@click.command()
@click.option("--recipe", required=True, metavar="NAME_OR_PATH", help="What to train, and how.")
@click.option("--base", metavar="ID_OR_PATH", help="The base model (default: the recipe's).")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The adapter's folder: new, empty, or an unfinished run to resume (default: adapters/RECIPE).",
)
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option("--keep-checkpoints", is_flag=True, help="Keep OUT/checkpoints when the run has succeeded.")
@click.option("--json", "as_json", is_flag=True, help="Machine output on stdout.")
@click.option("-v", "--verbose", is_flag=True, help="Show what transformers, TRL and PEFT print.")
@click.option("-q", "--quiet", "silent", is_flag=True, help="Print errors only.")
def command(
    recipe: str,
    base: str | None,
    out: Path | None,
    overrides: tuple[str, ...],
    keep_checkpoints: bool,
    as_json: bool,
    verbose: bool,
    silent: bool,
) -> int:
    r"""Train an adapter from a recipe, with TRL's SFTTrainer.

    Everything that was given is checked first. The finished adapter is loaded again on a fresh base: where a
    single logit differs from the live model in any bit, the run fails with status 3 and leaves no adapter.
    Interrupted, the same command resumes from the newest checkpoint whose files are whole.

    Several processes (files for other machines are beside cpu-two.yaml):

    \b
      accelerate launch --config_file templates/accelerate/cpu-two.yaml \
        -m lora_eval.train --recipe NAME --out DIR

    \b
    Example:
      lora-eval train --recipe mine.yaml --base ./base --out adapters/mine training.learning_rate=1e-4
    """
    from lora_eval.models.processes import rank

    first = rank() == 0
    started = time.perf_counter()
    try:
        result = _train(
            recipe,
            base,
            out,
            overrides,
            keep_checkpoints=keep_checkpoints,
            verbose=verbose,
            shown=first and not silent,
        )
    except InputError as error:
        if first:
            raise
        return error.exit_status  # the first process says the same
    if result.log is not None:
        _print(result.log, result.out, time.perf_counter() - started, as_json=as_json, silent=silent)
    return 0


def _train(
    recipe: str,
    base: str | None,
    out: Path | None,
    overrides: tuple[str, ...],
    *,
    keep_checkpoints: bool,
    verbose: bool,
    shown: bool,
) -> TrainResult:
    from lora_eval.cli.progress import progress_bar
    from lora_eval.models.processes import check_launch
    from lora_eval.models.quiet import quiet, without_gptqmodel

    check_launch()
    # From the first import on: the libraries log while they are imported.
    with progress_bar(shown) as progress, quiet(verbose), without_gptqmodel():
        from lora_eval.recipes import load_recipe
        from lora_eval.train import resolve_base, train

        resolved = load_recipe(recipe, overrides)
        folder, name = resolve_base(resolved, base)
        return train(
            resolved,
            folder,
            out or Path("adapters") / resolved.recipe.name,
            base_name=name,
            keep_checkpoints=keep_checkpoints,
            verbose=verbose,
            progress=progress,
            notify=(lambda text: click.echo(text, err=True)) if shown else lambda text: None,
        )


def _print(log: TrainingLog, out: Path, seconds: float, *, as_json: bool, silent: bool) -> None:
    import json

    if as_json:
        values = {"adapter": str(out), "seconds": seconds, **log.model_dump(mode="json", by_alias=True)}
        click.echo(json.dumps(values, indent=2, ensure_ascii=False))
    if silent or as_json:
        return
    loss = "no loss logged"
    if log.loss_start is not None and log.loss_end is not None:
        loss = f"loss {log.loss_start:.3f} -> {log.loss_end:.3f}"
    click.echo(
        f"{log.steps} steps in {log.wall_seconds:.0f} s ({seconds:.0f} s in all): {loss}, "
        f"{log.trained_tokens} tokens trained",
        err=True,
    )
    click.echo(
        f"reloaded on a fresh base: equal in every bit ({log.reload.tokens} positions, "
        f"largest change of a logit against the base {log.reload.effect:.2f})",
        err=True,
    )
    for note in log.notes:
        click.echo(f"warning: {note}", err=True)
    click.echo(f"adapter: {out}", err=True)
