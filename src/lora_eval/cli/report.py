"""`lora-eval report`: the reports of a stored comparison again, from its records alone."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(epilog="Nothing is scored or tested again: every figure comes from comparison.json.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Print the verdict's sentence only.")
def command(folder: Path, as_json: bool, quiet: bool) -> None:
    r"""Write report.md and report.html of a comparison again, and show it.

    DIR is what `compare --out` or `quickstart --out` wrote: comparison.json and runs/ARM/.

    \b
    Example:
      lora-eval report runs/mine
      lora-eval report runs/mine --json | jq '.tasks[].pairs[].verdict'
    """
    from rich.console import Console

    from lora_eval.compare import load_stored, write_reports
    from lora_eval.reports.terminal import print_comparison
    from lora_eval.reports.words import headline
    from lora_eval.schema import dump_record

    stored = load_stored(folder)
    write_reports(stored, folder)
    if as_json:
        click.echo(dump_record(stored.comparison), nl=False)
    elif quiet:
        click.echo(headline(stored.comparison))
    else:
        print_comparison(stored.comparison, Console(), stored.verifications)
    click.echo(f"wrote {folder / 'report.md'} and {folder / 'report.html'}", err=True)
