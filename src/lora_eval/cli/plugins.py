"""`lora-eval plugins`: what can be asked for by name, which package brings it, and whether it loads."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import click

from lora_eval.errors import LoraEvalError
from lora_eval.registry import GROUPS, Plugin, list_plugins, load_plugin


class Row(NamedTuple):
    """One plugin, and what is wrong with it (None: nothing known, or not looked at)."""

    plugin: Plugin
    problem: str | None


@click.command(
    epilog="A broken plugin never breaks a command that does not ask for it. "
    "Exit status: 0, or 2 where --check finds one that is broken."
)
@click.option("--check", is_flag=True, help="Load each one, and say what is broken and why.")
@click.option("--kind", type=click.Choice(list(GROUPS)), multiple=True, help="Only this kind; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Machine output on stdout.")
def command(check: bool, kind: tuple[str, ...], as_json: bool) -> int:
    r"""List every recipe, template, suite, exporter, engine, server and judge, without importing any.

    \b
    Example:
      lora-eval plugins
      lora-eval plugins --kind recipe --check
    """
    plugins = [plugin for each in kind or GROUPS for plugin in list_plugins(each)]
    owners = Counter((plugin.kind, plugin.name) for plugin in plugins)
    rows = [
        _row(plugin, owners[plugin.kind, plugin.name] > 1, check) for plugin in _with_progress(plugins, check)
    ]
    click.echo(_as_json(rows, check) if as_json else _as_text(rows, check))
    return 2 if check and any(row.problem for row in rows) else 0


def _with_progress(plugins: list[Plugin], check: bool) -> Iterable[Plugin]:
    """Loading takes seconds (recipes are compared with the libraries): a bar where someone is looking."""
    if not check or not sys.stderr.isatty():
        return plugins
    from rich.console import Console
    from rich.progress import track

    return track(plugins, "Loading", console=Console(stderr=True), transient=True)


def _row(plugin: Plugin, duplicate: bool, check: bool) -> Row:
    article = "an" if plugin.kind[0] in "aeiou" else "a"
    problem = f"more than one package has {article} {plugin.kind} of this name; uninstall or rename one"
    if duplicate or not check:
        return Row(plugin, problem if duplicate else None)
    try:
        _load(plugin)
    except LoraEvalError as error:
        return Row(plugin, str(error))
    return Row(plugin, None)


def _load(plugin: Plugin) -> None:
    """Load as the commands do: recipes, templates and suites through the readers of their kind."""
    if plugin.kind == "recipe":
        from lora_eval.recipes import load_recipe

        load_recipe(plugin.name)
    elif plugin.kind == "template":
        from lora_eval.chat.templates import load_template

        load_template(plugin.name)
    elif plugin.kind == "suite":
        from lora_eval.suites.catalog import load_suite

        load_suite(plugin.name)
    elif plugin.kind == "judge":
        from lora_eval.judges.profiles import find_profile

        find_profile(plugin.name)
    else:
        load_plugin(plugin)


def _as_json(rows: list[Row], check: bool) -> str:
    def entry(row: Row) -> dict[str, Any]:
        plugin = row.plugin
        return {
            "kind": plugin.kind,
            "name": plugin.name,
            "package": plugin.package,
            "version": plugin.version,
            "source": plugin.source,
            "loads": row.problem is None if check else None,
            "problem": row.problem,
        }

    return json.dumps({"plugins": [entry(row) for row in rows]}, indent=2, ensure_ascii=False)


def _as_text(rows: list[Row], check: bool) -> str:
    cells = [
        (row.plugin.kind, row.plugin.name, f"{row.plugin.package} {row.plugin.version}", row.plugin.source)
        for row in rows
    ]
    widths = [max((len(text) for text in column), default=0) for column in zip(*cells, strict=True)]
    lines = []
    for row, cell in zip(rows, cells, strict=True):
        lines.append("  ".join(text.ljust(width) for text, width in zip(cell, widths, strict=True)).rstrip())
        if row.problem:
            lines += [f"    BROKEN: {line}" for line in row.problem.splitlines()]
    broken = sum(row.problem is not None for row in rows)
    counted = f"{len(rows)} plugins"
    lines.append(f"{counted}, {broken} broken" if check or broken else counted)
    return "\n".join(lines)
