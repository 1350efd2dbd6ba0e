"""`lora-eval report`: the reports of stored comparisons again, from their records alone, and their trend."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_eval.errors import InputError

if TYPE_CHECKING:
    from lora_eval.compare import Stored
    from lora_eval.reports.trend import Source


@click.command(epilog="Nothing is scored or tested again: every figure comes from comparison.json.")
@click.argument(
    "folders", type=click.Path(path_type=Path, file_okay=False), metavar="DIR...", nargs=-1, required=True
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=None,
    help="Folder for trend.html and trend.md of several DIR. [default: the folder that the first DIR is in]",
)  # fmt: skip
@click.option(
    "--order", type=click.Choice(["given", "time"]), default="given", show_default=True,
    help="Versions of the trend as given, or by the time at which each comparison was made.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the comparison (of several: the trend) as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print the verdict's sentence only.")
def command(folders: tuple[Path, ...], out: Path | None, order: str, as_json: bool, quiet: bool) -> None:
    r"""Write report.md and report.html of comparisons again, and show them.

    DIR is what `compare --out` or `quickstart --out` wrote: comparison.json and runs/ARM/. Several of them,
    such as versions of an adapter, also give a trend page: for each task the difference from the base.

    \b
    Example:
      lora-eval report runs/mine
      lora-eval report runs/mine --json | jq '.tasks[].pairs[].verdict'
      lora-eval report runs/v1 runs/v2 runs/v3 --out runs
    """
    from lora_eval.compare import load_stored, write_reports

    check_folders(folders, out)
    stored = {folder: load_stored(folder) for folder in folders}
    for folder, own in stored.items():
        write_reports(own, folder)
    if len(stored) == 1:
        folder, own = next(iter(stored.items()))
        show_one(own, as_json=as_json, quiet=quiet)
        click.echo(f"wrote {folder / 'report.md'} and {folder / 'report.html'}", err=True)
        return
    place = out or folders[0].absolute().parent
    sources = list_sources(stored, place, order)
    write_trend(sources, place)
    show_trend(sources, as_json=as_json, quiet=quiet)
    click.echo(f"wrote report.md and report.html in {', '.join(map(str, stored))}", err=True)
    click.echo(f"wrote {place / 'trend.md'} and {place / 'trend.html'}", err=True)


def check_folders(folders: tuple[Path, ...], out: Path | None) -> None:
    """Refuse what has no meaning: a folder given twice, a place for the trend of one comparison.

    Raises:
        InputError: one of these.
    """
    seen = [folder.resolve() for folder in folders]
    twice = next((folder for folder, own in zip(folders, seen, strict=True) if seen.count(own) > 1), None)
    if twice is not None:
        raise InputError(f"{twice}: given twice; a trend needs each comparison once")
    if out is not None and len(folders) == 1:
        raise InputError(
            f"--out {out}: is for the trend of several DIR; the report of one is written into it"
        )


def list_sources(stored: dict[Path, Stored], place: Path, order: str) -> list[Source]:
    """Return the comparisons as versions of a page in `place`, in order; names as short as they can be."""
    import os
    from datetime import UTC, datetime
    from urllib.parse import quote

    from lora_eval.reports.trend import Source

    names = [folder.resolve().name for folder in stored]
    labels = names if len(set(names)) == len(names) else [str(folder) for folder in stored]
    sources = []
    for label, (folder, own) in zip(labels, stored.items(), strict=True):
        written = datetime.fromtimestamp((folder / "comparison.json").stat().st_mtime, UTC)
        report = Path(os.path.relpath((folder / "report.html").resolve(), place.resolve()))
        time = own.comparison.created or written.isoformat(timespec="seconds")
        sources.append(Source(label, quote(report.as_posix()), time, own.comparison))
    # Stable: comparisons of one second stay as given. All times are in UTC and of one form.
    return sorted(sources, key=lambda source: source.time) if order == "time" else sources


def write_trend(sources: list[Source], place: Path) -> None:
    """Write trend.md and trend.html."""
    from lora_eval.reports.trend import render_trend_html, render_trend_markdown
    from lora_eval.schema import write_text

    write_text(place / "trend.md", render_trend_markdown(sources))
    write_text(place / "trend.html", render_trend_html(sources))


def show_one(stored: Stored, *, as_json: bool, quiet: bool) -> None:
    """Print one comparison."""
    from rich.console import Console

    from lora_eval.reports.terminal import print_comparison
    from lora_eval.reports.words import headline
    from lora_eval.schema import dump_record

    if as_json:
        click.echo(dump_record(stored.comparison), nl=False)
    elif quiet:
        click.echo(headline(stored.comparison))
    else:
        print_comparison(stored.comparison, Console(), stored.verifications)


def show_trend(sources: list[Source], *, as_json: bool, quiet: bool) -> None:
    """Print the trend."""
    import json

    from rich.console import Console

    from lora_eval.reports.terminal import print_trend
    from lora_eval.reports.trend import list_trends, list_versions, trend_headline

    versions = list_versions(sources)
    if as_json:
        click.echo(json.dumps({"versions": [_version(version) for version in versions]}, indent=2))
    elif quiet:
        click.echo(trend_headline(versions, list_trends(versions)))
    else:
        print_trend(versions, Console())


def _version(version: Any) -> dict[str, Any]:
    from lora_eval.reports.words import base_arm, rows_of

    rows = rows_of(version.comparison, base_arm(version.comparison).name, version.arm.name)
    keys = ("n", "difference", "ci_low", "ci_high", "level", "p_adjusted", "verdict")
    return {
        "version": version.label,
        "arm": version.arm.name,
        "fingerprint": version.arm.fingerprint,
        "time": version.time,
        "gate": version.gate or None,
        "tasks": [
            {"task": task.task, "metric": task.metric, "filter": task.filter}
            | {key: getattr(pair, key) for key in keys}
            for task, pair in rows
        ],
    }
