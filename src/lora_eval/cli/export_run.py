"""What every `lora-eval export` command has: its output options, how it runs, is verified, and reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lora_eval.cli.verify_export import check_export, chosen_options, conclude, verify_options


def output_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add what every export has."""
    for option in (
        click.option("-q", "--quiet", is_flag=True, help="No progress."),
        click.option("--json", "as_json", is_flag=True, help="Print the lineage as JSON on stdout."),
        click.option(
            "--out", required=True, type=click.Path(path_type=Path), help="New folder for the model."
        ),
    ):
        function = option(function)
    return verify_options(function)


def run_export(
    name: str,
    base: Path,
    adapter: Path | None,
    out: Path,
    options: dict[str, Any],
    as_json: bool,
    quiet: bool,
) -> None:
    """Export, verify what was written, and print the lineage or where the model lies."""
    from lora_eval.cli.progress import progress_bar
    from lora_eval.export import export
    from lora_eval.models.quiet import quiet as quieted
    from lora_eval.schema import dump_record

    checks = chosen_options()
    # Several adapters were made one, which lies in the folder: that is what can be measured.
    measured = out / "combined_adapter" if options.get("others") else adapter
    with progress_bar(not (quiet or as_json)) as progress, quieted(bool(options.get("verbose"))):
        lineage = export(name, base=base, adapter=adapter, out=out, options=options, progress=progress)
        lineage, record, reason = check_export(base, measured, out, lineage, checks, progress)
    arguments = lineage.steps[-1].arguments if lineage.steps else {}
    for note in () if as_json else arguments.get("notes", ()):
        click.echo(f"note: {note}", err=True)
    if as_json:
        click.echo(dump_record(lineage), nl=False)
    elif not quiet:
        click.echo(f"wrote {out} ({lineage.variants[-1].kind}, {lineage.variants[-1].fingerprint})", err=True)
        if (same := arguments.get("layers_as_trained")) is not None:
            held = f"{same} of {arguments['layers_quantized']} quantized layers"
            click.echo(f"{held} hold in every bit what they held in training", err=True)
    conclude(record, reason, asked_for_another=options.get("onto") == "original", quiet=quiet or as_json)
