"""`lora-eval template`: list, show, apply and check chat templates."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_eval.errors import OutputError, TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lora_eval.chat import MaskReport
    from lora_eval.chat.check import TemplateCheck
    from lora_eval.records import ChatTemplate

_json = click.option("--json", "as_json", is_flag=True, help="Machine output on stdout.")
_folder = click.Path(path_type=Path)
_SHOWN = 20


@click.group()
def command() -> None:
    r"""List, show, apply and check chat templates.

    A template is a pair of texts: `default`, the vendor's own, and `training`, which renders the same bytes
    and marks what the assistant wrote, so that only that is trained. A path (x.jinja, with x_training.jinja
    beside it) is accepted wherever a name is.

    \b
    Example:
      lora-eval template list
      lora-eval template check qwen2.5 --tokenizer ./base
      lora-eval template apply qwen2.5 --tokenizer ./base --out ./base-tokenizer
    """


@command.command("list")
@_json
def list_command(as_json: bool) -> None:
    r"""All templates, packaged and from plugins.

    \b
    Example:
      lora-eval template list --json
    """
    from lora_eval.chat.templates import read_template
    from lora_eval.registry import list_plugins

    rows = []
    for plugin in list_plugins("template"):
        row: dict[str, object] = {"name": plugin.name, "package": plugin.package, "version": plugin.version}
        if plugin.path is None:
            row |= {"summary": f"(plugin: {plugin.source})"}
        else:
            template = read_template(plugin.path)
            row |= {"summary": template.summary, "families": template.families, "licence": template.licence}
            row |= {"training": template.training is not None, "upstream_sha256": template.upstream_sha256}
        rows.append(row)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    width = max((len(str(row["name"])) for row in rows), default=0)
    for row in rows:
        owner = "" if row["package"] == "lora-eval" else f"  [{row['package']} {row['version']}]"
        click.echo(f"{row['name']:<{width}}  {row['summary']}{owner}")


@command.command()
@click.argument("name")
@click.option("--training", is_flag=True, help="The text with {% generation %} marks.")
@_json
def show(name: str, training: bool, as_json: bool) -> None:
    r"""A template's text, byte for byte.

    \b
    Example:
      lora-eval template show llama3 --training
    """
    from lora_eval.chat import load_template

    template = load_template(name)
    if as_json:
        click.echo(json.dumps(template.model_dump(mode="json"), indent=2, ensure_ascii=False))
        return
    if training and template.training is None:
        raise TemplateError(f"template '{template.name}' has no training text")
    click.echo(template.training if training else template.default, nl=False)


@command.command()
@click.argument("name")
@click.option("--tokenizer", "folder", type=_folder, required=True, help="Folder of the tokenizer.")
@click.option("--out", type=_folder, required=True, help="New folder for the tokenizer with the template.")
def apply(name: str, folder: Path, out: Path) -> None:
    r"""Put a template on a tokenizer, under the names `default` and `training`.

    The weights are not touched: copy the written files beside them.

    \b
    Example:
      lora-eval template apply llama3 --tokenizer ./base --out ./base-tokenizer
    """
    from lora_eval.chat import load_template, set_template
    from lora_eval.models import load_tokenizer

    template = load_template(name)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} exists already and is not empty; give a new folder with --out")
    tokenizer = load_tokenizer(folder)
    set_template(tokenizer, template)
    _save(tokenizer, out)
    click.echo(f"{out}: the tokenizer of {folder} with the template '{template.name}'", err=True)


@command.command()
@click.argument("name")
@click.option("--tokenizer", "folder", type=_folder, help="Check by token with the tokenizer of this folder.")
@click.option("--data", type=_folder, help="Check on these conversations too, and count what trains of them.")
@click.option("--max-length", type=click.IntRange(min=1), help="Count what this length cuts off.")
@_json
def check(name: str, folder: Path | None, data: Path | None, max_length: int | None, as_json: bool) -> int:
    r"""Prove that the training text renders the default's bytes and marks what the assistant wrote.

    With --tokenizer also by token; a conversation is shown with its trained tokens coloured (or between
    brackets where the output has no colour). Exit status: 0, or 3 where the template is not safe.

    \b
    Example:
      lora-eval template check ./mine.jinja --tokenizer ./base
      lora-eval template check qwen2.5 --tokenizer ./base --data chats.jsonl --max-length 2048
    """
    from lora_eval.chat import load_template, mask_report, set_template
    from lora_eval.chat.check import PROBES, check_template
    from lora_eval.data import read_conversations
    from lora_eval.models import load_tokenizer

    if data is not None and folder is None:
        raise click.UsageError("--data needs --tokenizer: what trains is counted in tokens")
    template = load_template(name)
    tokenizer = load_tokenizer(folder) if folder else None
    conversations = read_conversations(data) if data else []
    result = check_template(template, tokenizer, [*PROBES, *conversations])
    report = None
    if tokenizer is not None and conversations and result.passed:
        set_template(tokenizer, template)
        report = mask_report(tokenizer, conversations, max_length=max_length)
    if as_json:
        _echo_json(template, result, tokenizer, report)
    else:
        _echo_text(template, result, tokenizer, report)
    return 0 if result.passed else 3


def _echo_json(
    template: ChatTemplate,
    result: TemplateCheck,
    tokenizer: PreTrainedTokenizerBase | None,
    report: MaskReport | None,
) -> None:
    data: dict[str, object] = {
        "template": template.name,
        "passed": result.passed,
        "conversations": result.conversations,
        "refused": result.refused,
        "problems": result.problems,
    }
    if tokenizer is not None:
        data["tokens"] = [
            {"text": text, "trained": trained} for text, trained in _tokens(template, tokenizer)
        ]
    if report is not None:
        data["data"] = asdict(report)
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def _echo_text(
    template: ChatTemplate,
    result: TemplateCheck,
    tokenizer: PreTrainedTokenizerBase | None,
    report: MaskReport | None,
) -> None:
    refused = f", {result.refused} refused by both texts" if result.refused else ""
    click.echo(f"template '{template.name}': {result.conversations} conversations{refused}")
    for problem in result.problems[:_SHOWN]:
        click.echo(f"  {problem}")
    if len(result.problems) > _SHOWN:
        click.echo(f"  and {len(result.problems) - _SHOWN} more; --json has all")
    if tokenizer is not None:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        for text, trained in _tokens(template, tokenizer):
            marked = click.style(text, fg="green", bold=True) if colour else f"[{text}]"
            click.echo(marked if trained else text, nl=False)
        click.echo()
    if report is not None:
        click.echo(report.summary)
    click.echo("safe to train with" if result.passed else "NOT safe to train with")


def _tokens(template: ChatTemplate, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, bool]]:
    """The tokens of a conversation that the template takes, each with whether it trains."""
    from lora_eval.chat.check import PROBES
    from lora_eval.chat.mask import mask_with_text

    text = template.training or template.default
    try:
        ids, mask = mask_with_text(tokenizer, PROBES[3], text)
    except TemplateError:  # it refuses a system message
        ids, mask = mask_with_text(tokenizer, PROBES[2], text)
    return [(tokenizer.decode([i]), bool(trained)) for i, trained in zip(ids, mask, strict=True)]


def _save(tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write the folder whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        tokenizer.save_pretrained(temporary)
        temporary.chmod(0o755)
        temporary.replace(out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
