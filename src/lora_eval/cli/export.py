"""`lora-eval export`: merge, base, gptq, awq, and every exporter that an installed package adds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lora_eval.cli.export_merge import base_command, merge
from lora_eval.cli.export_run import output_options, run_export


class ExporterGroup(click.Group):
    """Our own exporters with their options; plugins by name, with `--option KEY=VALUE`."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Our command, or one made for the plugin of that name (PluginError where there is none)."""
        return super().get_command(ctx, cmd_name) or _plugin_command(cmd_name)


@click.group(cls=ExporterGroup, no_args_is_help=True)
def command() -> None:
    r"""Write the model that ships: whole or not at all, with its lineage.

    Exporters that other packages bring (`lora-eval plugins` lists them) are called by their name too, with
    --model or --base and --adapter, --out, and --option KEY=VALUE for their own options.

    \b
    Example:
      lora-eval export merge --base ./base --adapter ./adapter --out ./merged
      lora-eval export base --base ./base --adapter ./adapter --dequantized --out ./base-as-trained
      lora-eval export gptq --model ./merged --out ./gptq
      lora-eval export awq --model ./merged --out ./awq
      lora-eval verify --base ./base --reference adapter:./adapter --candidate merged:./merged \
        --prompts held-out.jsonl --out verification.json
    """


command.add_command(merge)
command.add_command(base_command)


def _quantize_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add what both ways to quantize have."""
    for option in (
        click.option("-v", "--verbose", is_flag=True, help="Show what the library logs."),
        click.option("--seed", type=int, default=0, show_default=True),
        click.option(
            "--max-length", type=click.IntRange(min=16), default=2048, show_default=True, help="Tokens a row."
        ),
        click.option(
            "--samples", type=click.IntRange(min=1), default=256, show_default=True, help="Rows to use."
        ),
        click.option(
            "--held-out",
            multiple=True,
            metavar="SUITE",
            help="Suite (name or path) whose items must not be among the calibration rows; repeatable "
            "(default: the suite that the model's recipe names).",
        ),
        click.option(
            "--calibration",
            type=click.Path(path_type=Path, dir_okay=False),
            help="JSON lines of conversations ({'messages': [...]}) or texts ({'text': ...}); default: the "
            "training data that the lineage names.",
        ),
        click.option(
            "--sym/--asym", default=True, show_default=True, help="Whether integers lie evenly around zero."
        ),
        click.option(
            "--group-size", type=int, metavar="128|64|32",
            help="Input columns that share a scale; must divide the input size of every layer (default: the "
            "largest that does).",
        ),
        click.option("--bits", type=click.Choice(["4", "8"]), default="4", show_default=True),
        click.option(
            "--model", required=True, help="Merged or base model to quantize (folder or Hub id[@REV])."
        ),
    ):  # fmt: skip
        function = option(function)
    return function


@command.command("gptq", short_help="Quantize a whole model to 4 or 8 bits with GPTQ.")
@_quantize_options
@click.option("--desc-act", is_flag=True, help="Columns in the order of their activations; vLLM refuses it.")
@output_options
def gptq(model: str, out: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    r"""Quantize a whole model with GPTQ (gptqmodel); by default in the form that vLLM serves.

    Calibrated on conversations rendered with the model's own chat template. Runs on a CPU too.

    \b
    Example:
      lora-eval export gptq --model ./merged --out ./gptq
      lora-eval export gptq --model ./merged --group-size 64 --calibration train.jsonl --out ./gptq
    """
    _quantize("gptq", model, out, options, as_json, quiet)


@command.command("awq", short_help="Quantize a whole model to 4 or 8 bits with AWQ.")
@_quantize_options
@click.option(
    "--python",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Python that has llm-compressor (or $LORA_EVAL_LLM_COMPRESSOR_PYTHON); default: an environment that "
    "is made once and kept in the user's cache.",
)
@output_options
def awq(model: str, out: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    r"""Quantize a whole model with AWQ (llm-compressor), in the compressed-tensors format that vLLM serves.

    llm-compressor needs other versions of our libraries, so it runs in an environment of its own: the one
    given, or one that is installed on first use (1.5 GB on a CPU). Calibrated like GPTQ. Runs on a CPU too.

    \b
    Example:
      lora-eval export awq --model ./merged --out ./awq
      lora-eval export awq --model ./merged --bits 8 --asym --calibration train.jsonl --out ./awq
    """
    from lora_eval.exporters.environment import announcement

    note = announcement(options["python"])
    if note and not quiet:
        click.echo(note, err=True)
    _quantize("awq", model, out, options, as_json, quiet)


def _quantize(name: str, model: str, out: Path, options: dict[str, Any], as_json: bool, quiet: bool) -> None:
    from lora_eval.models import parse_arm, resolve_model

    _, path, revision = parse_arm(model)
    folder = resolve_model(path, revision)
    options["bits"] = int(options["bits"])
    options["held_out"] = _held_out(folder, options["held_out"])
    run_export(name, folder, None, out, options, as_json, quiet)


def _held_out(folder: Path, suites: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the texts of the items that calibration must not hold, by task; says where there are none."""
    from lora_eval.errors import InputError
    from lora_eval.exporters.calibration import trained_for
    from lora_eval.suites.texts import item_texts

    if suites:
        return {task: texts for suite in suites for task, texts in item_texts(suite).items()}
    suite = trained_for(folder)
    if suite is None:
        click.echo("note: calibration is checked against no benchmark; name one with --held-out", err=True)
        return {}
    try:
        return item_texts(suite)
    except InputError as error:
        click.echo(f"note: calibration is not checked against the suite {suite}: {error}", err=True)
        return {}


def _plugin_command(name: str) -> click.Command:
    """Return the command of an exporter that another package brings (PluginError where there is none)."""
    from lora_eval.registry import find_plugin

    plugin = find_plugin("exporter", name)

    @click.command(name, help=f"Exporter of {plugin.package} {plugin.version}.")
    @click.option("--model", "--base", "base", required=True, help="Base, or whole model to export.")
    @click.option("--adapter", help="Adapter to export with its base.")
    @click.option("--option", "pairs", multiple=True, metavar="KEY=VALUE", help="An option of the exporter.")
    @output_options
    def run(
        base: str,
        adapter: str | None,
        pairs: tuple[str, ...],
        out: Path,
        as_json: bool,
        quiet: bool,
    ) -> None:
        from lora_eval.models import parse_arm, resolve_adapter, resolve_model

        _, path, revision = parse_arm(base)
        folder = resolve_model(path, revision)
        _, adapter_path, adapter_revision = parse_arm(adapter) if adapter else (None, "", None)
        chosen = resolve_adapter(adapter_path, adapter_revision) if adapter else None
        run_export(name, folder, chosen, out, _pairs(pairs), as_json, quiet)

    return run


def _pairs(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Return the options; a value that is a YAML number or truth value is one."""
    from lora_eval.schema import parse_yaml

    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.UsageError(f"--option {pair}: expected KEY=VALUE")
        options[key] = parse_yaml(value, f"--option {key}")
    return options
