"""`lora-eval export`: merge, base, lora, gptq, awq, gguf, and what exporters of other packages add."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lora_eval.cli.export_lora import lora
from lora_eval.cli.export_merge import base_command, merge
from lora_eval.cli.export_quantize import awq, gguf, gptq
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
      lora-eval export lora --base ./base --adapter ./pissa --out ./plain
      lora-eval export gptq --model ./merged --out ./gptq
      lora-eval export awq --model ./merged --out ./awq
      lora-eval verify --base ./base --reference adapter:./adapter --candidate merged:./merged \
        --prompts held-out.jsonl --out verification.json
    """


command.add_command(merge)
command.add_command(base_command)
command.add_command(lora)
for ours in (gptq, awq, gguf):
    command.add_command(ours)


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
