"""`lora-eval export merge` and `export base`: the weights that training saw, with and without the adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lora_eval.cli.export_run import output_options, run_export


def _weight_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add what merge and base have: which weights training saw, and how the folder is written."""
    for option in (
        click.option(
            "--server",
            type=click.Choice(["transformers", "vllm", "sglang", "tgi"]),
            help="Put the chat template only where this server reads it: in chat_template.jinja, or (tgi) in "
            "tokenizer_config.json (default: both).",
        ),
        click.option(
            "--dtype",
            type=click.Choice(["bfloat16", "float16", "float32"]),
            help="Stored dtype (default: the base's).",
        ),
        click.option(
            "--quantize",
            metavar="nf4|fp4|none|FILE",
            help="How training quantized the base, for adapters without lineage.json (default: as the "
            "lineage says). FILE: JSON with the arguments of BitsAndBytesConfig; nf4 and fp4: 4 bits with "
            "double quantization and bfloat16 compute.",
        ),
    ):
        function = option(function)
    return function


@click.command("merge", short_help="Add an adapter to the weights it was trained on.")
@click.option("--base", required=True, help="Model that the adapter was trained on (folder or Hub id[@REV]).")
@click.option(
    "--adapter", "adapters", required=True, multiple=True, metavar="ID_OR_PATH[@REV]",
    help="Adapter to merge; several become one first (see --combine).",
)  # fmt: skip
@click.option(
    "--onto",
    type=click.Choice(["trained", "original"]),
    help="'trained': the base as quantized in training (default where the lineage says it was); 'original': "
    "the 16-bit base, which for a QLoRA adapter is another model than the one measured.",
)
@click.option("--weight", "weights", multiple=True, type=float, help="Of each --adapter, in their order.")
@click.option(
    "--combine", metavar="linear|cat|ties|dare_linear|dare_ties|magnitude_prune",
    help="How several adapters become one, by PEFT's add_weighted_adapter (default: linear, on the A and the "
    "B matrices; cat: the exact sum of the changes).",
)  # fmt: skip
@click.option("--density", type=float, help="Share of values that ties, dare_* and magnitude_prune keep.")
@click.option("--seed", type=int, help="Of dare_*'s draws (default: 0).")
@_weight_options
@output_options
def merge(
    base: str, adapters: tuple[str, ...], out: Path, as_json: bool, quiet: bool, **options: Any
) -> None:
    r"""Add the adapter to the weights it was trained on, tensor by tensor; the model is never loaded.

    LoRA, rsLoRA, DoRA, PiSSA, OLoRA, modules saved whole, trained tokens, resized vocabularies. Writes
    safetensors in the base's own layout, the adapter's tokenizer and chat templates, lineage.json, and
    audit.json with what happened to every changed tensor.

    \b
    Example:
      lora-eval export merge --base ./base --adapter ./adapter --out ./merged
      lora-eval export merge --base ./base --adapter ./adapter --onto original --out ./merged-original
      lora-eval export merge --base ./base --adapter ./a --adapter ./b --weight 0.7 --weight 0.3 --out ./both
    """
    from lora_eval.models import parse_arm, resolve_adapter, resolve_model

    _, base_path, base_revision = parse_arm(base)
    folder = resolve_model(base_path, base_revision)
    found = [parse_arm(adapter) for adapter in adapters]
    first, *others = [resolve_adapter(path, revision) for _, path, revision in found]
    options |= {"others": others or None, "weights": list(options["weights"]) or None}
    run_export("merge", folder, first, out, options, as_json, quiet)


@click.command("base", short_help="The base with the weights that a quantized training saw.")
@click.option("--base", required=True, help="Original 16-bit model (folder or Hub id[@REV]).")
@click.option("--adapter", help="Adapter whose lineage.json says how training quantized the base.")
@click.option(
    "--dequantized", is_flag=True, required=True,
    help="Write what the quantized layers multiplied by, in 16 or 32 bits.",
)  # fmt: skip
@_weight_options
@output_options
def base_command(
    base: str, adapter: str | None, out: Path, as_json: bool, quiet: bool, dequantized: bool, **options: Any
) -> None:
    r"""Write the base that a QLoRA adapter is to be served on where it is not merged.

    On the original 16-bit base such an adapter is another model than the one measured, as with
    --onto original.

    \b
    Example:
      lora-eval export base --base ./base --adapter ./adapter --dequantized --out ./base-as-trained
      lora-eval export base --base ./base --quantize nf4 --dequantized --out ./base-as-trained
    """
    from lora_eval.models import parse_arm, resolve_adapter, resolve_model

    _, path, revision = parse_arm(base)
    _, adapter_path, adapter_revision = parse_arm(adapter) if adapter else (None, "", None)
    chosen = resolve_adapter(adapter_path, adapter_revision) if adapter else None
    run_export("base", resolve_model(path, revision), chosen, out, options, as_json, quiet)
