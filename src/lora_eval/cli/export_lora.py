"""`lora-eval export lora`: the same change as a plain LoRA that servers take."""

from __future__ import annotations

from pathlib import Path

import click

from lora_eval.cli.export_run import output_options, run_export


@click.command("lora", short_help="Write an adapter as a plain LoRA that servers take.")
@click.option("--base", required=True, help="Model that the adapter was trained on (folder or Hub id[@REV]).")
@click.option("--adapter", required=True, metavar="ID_OR_PATH[@REV]", help="Adapter to convert.")
@click.option(
    "--rank", type=click.IntRange(min=1),
    help="Fill the matrices up with zeros to this rank (default: the largest of its layers).",
)  # fmt: skip
@output_options
def lora(base: str, adapter: str, rank: int | None, out: Path, as_json: bool, quiet: bool) -> None:
    r"""Write the adapter's change as a plain LoRA: one rank, one scaling, on the base as it is.

    PiSSA and OLoRA become LoRA of twice the rank, rsLoRA and patterns of ranks and alphas one pair, a regular
    expression of layers their list. DoRA, modules saved whole, trained tokens and biases are no LoRA: merge
    those. The new adapter is compared with the old one like every export.

    \b
    Example:
      lora-eval export lora --base ./base --adapter ./pissa --out ./plain
      lora-eval export lora --base ./base --adapter ./adapter --rank 16 --out ./padded
    """
    from lora_eval.models import parse_arm, resolve_adapter, resolve_model

    _, path, revision = parse_arm(base)
    _, place, version = parse_arm(adapter)
    folder, chosen = resolve_model(path, revision), resolve_adapter(place, version)
    run_export("lora", folder, chosen, out, {"rank": rank}, as_json, quiet)
