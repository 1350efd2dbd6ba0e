"""`lora-eval judge report`: figures of verdicts that are on disk. Nothing is asked of any judge."""

from __future__ import annotations

from pathlib import Path

import click

from lora_eval.cli.judge_options import SUITES


@click.command(
    epilog="Reads alpaca_eval's annotations.json, FastChat's *_single.jsonl and *_pair.jsonl, and our own."
)
@click.option("--suite", type=click.Choice(SUITES), required=True, help="Whose verdicts they are.")
@click.option(
    "--annotations", "files", type=click.Path(path_type=Path), multiple=True, required=True, metavar="FILE",
    help="A file of verdicts, plain or gzip, or a folder of judge run; repeatable.",
)  # fmt: skip
@click.argument("more", type=click.Path(path_type=Path), nargs=-1, metavar="[FILE]...")
@click.option(
    "--base", metavar="MODEL", help="mt-bench: the model that differences are from (default: the first)."
)
@click.option(
    "--df-gamed", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="alpaca-eval: its df_gamed.csv, for its own length-controlled win rate too.",
)  # fmt: skip
@click.option(
    "--figure", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="mt-bench: write the categories as a radar picture, in SVG.",
)  # fmt: skip
@click.option("--level", type=click.FloatRange(0.5, 1.0, max_open=True), default=0.95, show_default=True,
              help="Level of the intervals.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
def report(
    suite: str,
    files: tuple[Path, ...],
    more: tuple[Path, ...],
    base: str | None,
    df_gamed: Path | None,
    figure: Path | None,
    level: float,
    as_json: bool,
) -> None:
    r"""Report what stored verdicts say: rates and scores as upstream has them, with true errors.

    \b
    Example:
      lora-eval judge report --suite alpaca-eval --annotations annotations.json
      lora-eval judge report --suite mt-bench --annotations gpt-4_single.jsonl.gz --json
    """
    from lora_eval.judges.report import build_report

    if suite != "mt-bench" and (base is not None or figure is not None):
        raise click.UsageError("--base and --figure belong to --suite mt-bench")
    if suite != "alpaca-eval" and df_gamed is not None:
        raise click.UsageError("--df-gamed belongs to --suite alpaca-eval")
    found = build_report(suite, [*files, *more], base=base, df_gamed=df_gamed, level=level)  # type: ignore[arg-type]
    if figure is not None:
        from lora_eval.judges.radar import radar
        from lora_eval.schema import write_text

        write_text(figure, radar(found))
        click.echo(f"wrote {figure}", err=True)
    if as_json:
        from lora_eval.schema import dump_record

        click.echo(dump_record(found), nl=False)
    else:
        from rich.console import Console

        from lora_eval.judges.tables import print_report

        print_report(found, Console())
