"""`lora-eval suite`: which suites there are, and what is in one."""

from __future__ import annotations

import json
from typing import Any

import click


@click.group(no_args_is_help=True)
def command() -> None:
    r"""List suites, and show one.

    \b
    Example:
      lora-eval suite list
      lora-eval suite show quick
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Machine output on stdout.")
def list_suites(as_json: bool) -> None:
    r"""List every packaged and installed suite.

    A suite of another package that cannot be read is listed with the reason.

    \b
    Example:
      lora-eval suite list
    """
    from lora_eval.registry import list_plugins

    rows = [_row(plugin.name, f"{plugin.package} {plugin.version}") for plugin in list_plugins("suite")]
    if as_json:
        click.echo(json.dumps({"suites": rows}, indent=2, ensure_ascii=False))
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        items = f"{row['items']:,} items" if row.get("items") else ""
        tasks = f"{len(row.get('tasks', ()))} tasks"
        text = row.get("problem") or row["summary"]
        click.echo(f"{row['name']:<{width}}  {tasks:>8}  {items:>12}  {text}".rstrip())


@command.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Machine output on stdout.")
def show(name: str, as_json: bool) -> None:
    r"""Show a suite by NAME or path: its tasks, shots, limits, and the metric each verdict rests on.

    \b
    Example:
      lora-eval suite show pocket
      lora-eval suite show ./mine/suite.yaml --json
    """
    from lora_eval.schema import dump_record, dump_yaml
    from lora_eval.suites.catalog import load_suite

    suite, folder = load_suite(name)
    if as_json:
        click.echo(dump_record(suite), nl=False)
        return
    click.echo(f"# folder: {folder.resolve()}")
    click.echo(dump_yaml(suite.model_dump(mode="json", by_alias=True, exclude_none=True)), nl=False)


def _row(name: str, package: str) -> dict[str, Any]:
    from lora_eval.errors import LoraEvalError
    from lora_eval.suites.catalog import load_suite

    row: dict[str, Any] = {"name": name, "package": package}
    try:
        suite, _ = load_suite(name)
    except LoraEvalError as error:
        return row | {"problem": str(error)}
    return row | {
        "summary": suite.summary,
        "version": suite.version,
        "items": suite.items,
        "tasks": [entry.task for entry in suite.entries()],
        "data_licence": suite.data_licence,
    }
