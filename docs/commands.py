"""Write docs/commands.md from the program's own help.

    python docs/commands.py [--print]

`tests/test_docs.py` fails where the page is not what `--print` shows.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from lora_eval.cli.main import group

PAGE = Path(__file__).parent / "commands.md"
HEAD = """# Commands

This page is made from the program's help by `python docs/commands.py`.

Exit status of every command: 0 done and passed; 1 a fault of ours, please report it; 2 bad input or usage;
3 a check failed; 130 interrupted. With `--json`, stdout holds machine output only.
"""


def render() -> str:
    """The page: one section for each command and subcommand, with its help as the terminal shows it."""
    settings = {**group.context_settings, "terminal_width": 100}
    top = click.Context(group, info_name="lora-eval", **settings)
    sections = [f"## {context.command_path}\n\n```text\n{text}\n```\n" for context, text in _helps(top)]
    return "\n".join([HEAD, *sections])


def _helps(context: click.Context) -> Iterator[tuple[click.Context, str]]:
    command = context.command
    yield context, "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _helps(click.Context(inner, parent=context, info_name=name))


if __name__ == "__main__":
    if sys.argv[1:] == ["--print"]:
        print(render(), end="")
    else:
        PAGE.write_text(render(), "utf-8")
