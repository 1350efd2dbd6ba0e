"""`lora-eval recipe`: list, show, check and copy recipes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_eval.errors import InputError

if TYPE_CHECKING:
    from lora_eval.recipes import ResolvedRecipe

_json = click.option("--json", "as_json", is_flag=True, help="Machine output on stdout.")


@click.group()
def command() -> None:
    r"""List, show, check and copy recipes: how an adapter is trained.

    A recipe's sections carry the field names of LoraConfig, BitsAndBytesConfig and SFTConfig. A path is
    accepted wherever a name is.

    \b
    Example:
      lora-eval recipe list
      lora-eval recipe show qlora-llama3-8b --resolved training.learning_rate=1e-4
      lora-eval recipe init qlora-llama3-8b --out mine.yaml
      lora-eval recipe validate mine.yaml
    """


@command.command("list")
@_json
def list_command(as_json: bool) -> None:
    r"""Names and summaries of all recipes, packaged and from plugins.

    \b
    Example:
      lora-eval recipe list --json
    """
    from dataclasses import asdict

    from lora_eval.recipes.catalog import list_recipes

    entries = list_recipes()
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in entries], indent=2))
        return
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        owner = "" if entry.package == "lora-eval" else f"  [{entry.package} {entry.version}]"
        click.echo(f"{entry.name:<{width}}  {entry.summary}{owner}")


@command.command()
@click.argument("name")
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option("--resolved", is_flag=True, help="With everything it extends: each value and where it is from.")
@_json
def show(name: str, overrides: tuple[str, ...], resolved: bool, as_json: bool) -> None:
    r"""A recipe as it is written, or resolved.

    Overrides imply --resolved. Nothing is compared with the installed libraries: `validate` does that.

    \b
    Example:
      lora-eval recipe show qlora-llama3-8b
      lora-eval recipe show qlora-llama3-8b --resolved lora.r=16
    """
    from lora_eval.recipes import load_recipe
    from lora_eval.recipes.catalog import recipe_text

    if not (resolved or overrides or as_json):
        click.echo(recipe_text(name), nl=False)
        return
    found = load_recipe(name, overrides, check=False)
    if as_json:
        recipe = found.recipe.model_dump(mode="json", by_alias=True)
        click.echo(json.dumps({"recipe": recipe, "origins": found.origins}, indent=2, ensure_ascii=False))
        return
    _show_origins(found)


@command.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME_OR_PATH...")
@_json
def validate(names: tuple[str, ...], as_json: bool) -> int:
    r"""Check recipes against the installed libraries: every fault at once, with its file and key.

    Also: the chat template, the suite and the data files that it names are there. Exit status: 0, or 2
    where one has a fault.

    \b
    Example:
      lora-eval recipe validate mine.yaml qlora-llama3-8b
    """
    with _loading_libraries():
        results = {name: _problems(name) for name in names}
    if as_json:
        rows = [{"recipe": name, "valid": not found, "problems": found} for name, found in results.items()]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        for name, problems in results.items():
            if not problems:
                click.echo(f"{name}: valid")
            for problem in problems:
                click.echo(f"Error: {problem}", err=True)
    return 2 if any(results.values()) else 0


@command.command()
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), help="The new file (default: NAME.yaml here).")
def init(name: str, out: Path | None) -> None:
    r"""Copy a recipe, comments included, to a file of your own.

    \b
    Example:
      lora-eval recipe init qlora-llama3-8b --out mine.yaml
    """
    from lora_eval.recipes.catalog import copy_recipe

    out = out or Path(f"{Path(name).stem if name.endswith(('.yaml', '.yml')) else name}.yaml")
    copy_recipe(name, out)
    click.echo(f"{out}: edit it, check it with `lora-eval recipe validate {out}`", err=True)


@command.command()
def schema() -> None:
    r"""The JSON schema of recipe files, for completion and checks in an editor.

    \b
    Example:
      lora-eval recipe schema > recipe.schema.json
      (first line of a recipe:  # yaml-language-server: $schema=recipe.schema.json)
    """
    from lora_eval.recipes.json_schema import recipe_json_schema

    with _loading_libraries():
        found = recipe_json_schema()
    click.echo(json.dumps(found, indent=2))


def _loading_libraries() -> AbstractContextManager[object]:
    """A spinner on a terminal's stderr: the imports take seconds."""
    from rich.console import Console

    return Console(stderr=True).status("reading the installed peft, transformers and trl")


def _show_origins(found: ResolvedRecipe) -> None:
    """One line for each value: key path, value, where it comes from; in the record's order."""
    leaves = _leaves(found.recipe.model_dump(mode="json", by_alias=True), "")
    rows = [(key, json.dumps(value, ensure_ascii=False)) for key, value in leaves if key in found.origins]
    keys = max(len(key) for key, _ in rows)
    values = min(40, max(len(value) for _, value in rows))
    for key, value in rows:
        click.echo(f"{key:<{keys}}  {value:<{values}}  # {found.origins[key]}")


def _leaves(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")


def _problems(name: str) -> list[str]:
    """Every fault of the recipe, then of what it names."""
    from lora_eval.recipes import load_recipe, lora_config, quantization_config, sft_config

    try:
        found = load_recipe(name)
    except InputError as error:
        return str(error).splitlines()
    recipe = found.recipe
    checks = (
        lambda: lora_config(recipe),
        lambda: quantization_config(recipe),
        lambda: sft_config(recipe, Path("out")),
        lambda: _find_template(recipe.chat_template),
        lambda: _find_suite(recipe.suite),
        found.data_files,
        found.eval_files,
    )
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except InputError as error:
            problems += [f"{name}: {line}" for line in str(error).splitlines()]
    return problems


def _find_template(name: str | None) -> None:
    from lora_eval.chat import load_template

    if name is not None:
        load_template(name)


def _find_suite(name: str | None) -> None:
    from lora_eval.registry import find_plugin, looks_like_path

    if name is not None and not looks_like_path(name):
        find_plugin("suite", name)
