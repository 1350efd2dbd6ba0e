"""`lora-eval export gptq`, `awq` and `gguf`: whole models in smaller forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lora_eval.cli.export_run import output_options, run_export


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


@click.command("gptq", short_help="Quantize a whole model to 4 or 8 bits with GPTQ.")
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


@click.command("awq", short_help="Quantize a whole model to 4 or 8 bits with AWQ.")
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
    _quantize("awq", model, out, options, as_json, quiet, note)


@click.command("gguf", short_help="Convert a whole model with llama.cpp's converter.")
@click.option("--model", required=True, help="Merged or base model to convert (folder or Hub id[@REV]).")
@click.option(
    "--outtype",
    type=click.Choice(["f32", "f16", "bf16", "q8_0"]),
    default="bf16",
    show_default=True,
    help="Stored type; smaller ones are made from it by llama.cpp's llama-quantize.",
)
@click.option(
    "--converter",
    type=click.Path(path_type=Path, dir_okay=False),
    help="llama.cpp's convert_hf_to_gguf.py (or $LORA_EVAL_GGUF_CONVERTER; default: the one on the PATH).",
)
@click.option(
    "--python",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Python that runs the converter (default: this one).",
)
@click.option("-v", "--verbose", is_flag=True, help="Show what the converter logs.")
@output_options
def gguf(model: str, out: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    r"""Convert a whole model to one GGUF file, with llama.cpp's own converter where it is present.

    \b
    Example:
      lora-eval export gguf --model ./merged --converter ~/llama.cpp/convert_hf_to_gguf.py --out ./gguf
    """
    from lora_eval.models import parse_arm, resolve_model

    _, path, revision = parse_arm(model)
    run_export("gguf", resolve_model(path, revision), None, out, options, as_json, quiet)


def _quantize(
    name: str,
    model: str,
    out: Path,
    options: dict[str, Any],
    as_json: bool,
    quiet: bool,
    announcement: str | None = None,
) -> None:
    from lora_eval.models import parse_arm, resolve_model

    _, path, revision = parse_arm(model)
    folder = resolve_model(path, revision)
    if announcement and not quiet:
        click.echo(announcement, err=True)
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
