"""`lora-eval gate`: may it ship? A stored comparison against a file of rules."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lora_eval.records import Comparison, GateResult


@click.command(epilog="Nothing is scored again: every bound follows from comparison.json.")
@click.argument("comparison", type=click.Path(path_type=Path), metavar="COMPARISON")
@click.argument("gate", type=click.Path(path_type=Path, dir_okay=False), metavar="GATE")
@click.option("--strict", is_flag=True, help="End with status 4 where the gate is inconclusive.")
@click.option(
    "--junit", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Write JUnit XML too: one case for each check.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Print the verdict's line only.")
def command(
    comparison: Path, gate: Path, strict: bool, junit: Path | None, as_json: bool, quiet: bool
) -> int:
    r"""Check a stored comparison against a gate, and end with its verdict.

    COMPARISON is comparison.json, or the folder that holds it. GATE is a YAML file of rules: the least gain,
    the largest drop or the largest ratio of perplexities of a task, at a one-sided confidence level.

    Status 0: PASS, or INCONCLUSIVE without --strict; 3: FAIL; 4: INCONCLUSIVE with --strict.

    \b
    Example:
      lora-eval gate runs/mine gate.yaml
      lora-eval gate runs/mine/comparison.json gate.yaml --strict --junit gate.xml
    """
    from rich.console import Console

    from lora_eval.records import Comparison, Gate
    from lora_eval.reports.gate_terminal import print_gate, verdict_line
    from lora_eval.schema import dump_record, read_record
    from lora_eval.stats.gate import gated

    path = comparison / "comparison.json" if comparison.is_dir() else comparison
    found = gated(read_record(path, Comparison), read_record(gate, Gate), str(gate))
    if as_json and found.gate is not None:
        click.echo(dump_record(found.gate), nl=False)
    elif quiet:
        click.echo(verdict_line(found))
    else:
        print_gate(found, Console())
    if junit is not None:
        _write_junit(found, junit, strict=strict)
    return exit_status(found.gate, strict=strict)


def exit_status(result: GateResult | None, *, strict: bool) -> int:
    """Return 3 for FAIL, 4 for INCONCLUSIVE where `strict`, else 0; a status 0 that is no PASS is told."""
    if result is None or result.verdict == "PASS":
        return 0
    if result.verdict == "INCONCLUSIVE" and not strict:
        click.echo("the gate is INCONCLUSIVE; the status is 0 (with --strict it is 4)", err=True)
        return 0
    return 3 if result.verdict == "FAIL" else 4


def _write_junit(comparison: Comparison, path: Path, *, strict: bool) -> None:
    from datetime import UTC, datetime

    from lora_eval.reports.junit import render_junit
    from lora_eval.schema import write_text

    write_text(path, render_junit(comparison, when=datetime.now(UTC), strict=strict))
    click.echo(f"wrote {path}", err=True)
