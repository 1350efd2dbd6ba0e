"""`lora-eval judge answers`: the arms' own answers, for a judge to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lora_eval.cli.judge_arms import arm_options, read_arms, read_asked, write_arms


@click.command(epilog="Writes DIR/ARM.jsonl, FastChat's format of answers; arms that are there are kept.")
@arm_options
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, metavar="DIR",
              help="Folder for the answers.")  # fmt: skip
@click.option("-q", "--quiet", "silent", is_flag=True, help="No progress bar.")
def answers(out: Path, silent: bool, **options: Any) -> None:
    r"""Let base and adapters answer the questions that a judge is then asked about.

    \b
    Example:
      lora-eval judge answers --base ./base --adapter tuned=./adapter --out answers
      lora-eval judge answers --base ./base --arm prod=served:http://127.0.0.1:8000/v1#tuned --out answers
    """
    from lora_eval.cli.progress import progress_bar
    from lora_eval.models.quiet import quiet

    asked, arms = read_asked(options), read_arms(options)
    with progress_bar(not silent) as progress, quiet():
        written = write_arms(arms, asked, out, options, progress)
    for note in written.notes:
        click.echo(f"Note: {note}", err=True)
    for arm, path in written.files.items():
        click.echo(f"{arm}: {path}", err=True)
