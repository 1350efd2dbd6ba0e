"""The `lora-eval` group: command names and one-line helps, without importing the commands."""

from __future__ import annotations

import errno
import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from lora_eval.errors import LoraEvalError

# name -> (module, one-line help): listing commands must not import them (a torch import costs 2 s).
_COMMANDS = {
    "quickstart": (
        "lora_eval.cli.quickstart",
        "Train, compare, merge, quantize and verify the embedded model.",
    ),
    "train": ("lora_eval.cli.train", "Train an adapter from a recipe."),
    "compare": (
        "lora_eval.cli.compare",
        "Score base and adapters on the same items and test the differences.",
    ),
    "gate": (
        "lora_eval.cli.gate",
        "Check a stored comparison against a gate; the exit status is its verdict.",
    ),
    "export": ("lora_eval.cli.export", "Merge or quantize the measured model."),
    "verify": ("lora_eval.cli.verify", "Prove that an exported model is the measured one."),
    "serve": ("lora_eval.cli.serve", "Serve base and adapters, or an exported model, with a local vLLM."),
    "smoke": ("lora_eval.cli.smoke", "Ask a running server whether it serves what was measured."),
    "deploy": ("lora_eval.cli.deploy", "Write a checked configuration for an inference server."),
    "judge": (
        "lora_eval.cli.judge",
        "Let another model judge the answers, and report what verdicts say.",
    ),
    "report": ("lora_eval.cli.report", "Write the report of a stored comparison again."),
    "publish": ("lora_eval.cli.publish", "Publish weights, card and records to the Hugging Face Hub."),
    "recipe": ("lora_eval.cli.recipe", "List, show, check and copy recipes."),
    "template": ("lora_eval.cli.template", "List, show and apply chat templates."),
    "suite": ("lora_eval.cli.suite", "List and show suites."),
    "plugins": ("lora_eval.cli.plugins", "List what is installed, and check that it loads."),
}

# Loggers that speak at import on every machine like ours, of things a user can do nothing about: torchao
# registers enums in torch's old way; bitsandbytes lacks an optional package and uses its own kernels; torchao
# has CUDA libraries that do not load without CUDA.
_NOISE = ("torch.utils._pytree", "bitsandbytes", "torchao")


def keep_examples(command: click.Command) -> click.Command:
    r"""Let click keep the lines of the examples, in subcommands too; returns the command.

    click wants the character that `\b` stands for, while docstrings are raw.
    """
    command.help = command.help.replace("\\b\n", "\b\n") if command.help else command.help
    for inner in getattr(command, "commands", {}).values():
        keep_examples(inner)
    return command


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order a person meets them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None where there is no such name."""
        if cmd_name not in _COMMANDS:
            return None
        for name in _NOISE:
            logging.getLogger(name).setLevel(logging.ERROR)
        command = import_module(_COMMANDS[cmd_name][0]).command
        if not isinstance(command, click.Command):
            raise TypeError(
                f"{_COMMANDS[cmd_name][0]}.command is {type(command).__name__}, expected a click command"
            )
        return keep_examples(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command and what is left of the line; an unknown name is answered with the nearest one."""
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-"):
            from lora_eval.schema import suggest

            ctx.fail(f"No such command '{name}'{suggest(name, list(_COMMANDS))}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. A reader that has gone (`| head`) has what it wanted: that is no error."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Python flushes stdout again at exit, and would complain there.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table above."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.command(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="lora-eval", prog_name="lora-eval")
def group() -> None:
    r"""Prove that the fine-tuned model is better than its base, and that what ships is what was measured.

    \b
    Example:
      lora-eval quickstart
      lora-eval compare --base ./base --adapter ./adapter --suite pocket --out runs/mine
    """


keep_examples(group)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its exit status.

    Importing torch and transformers makes a million objects and hardly any garbage. Looking for some took a
    fifth of the import, and at the end of the process as much again: 1.8 of 5.0 s for both.
    """
    gc.set_threshold(50_000)
    _end_as_by_ctrl_c()
    status = run(arguments)
    gc.freeze()
    sys.exit(status)


def _end_as_by_ctrl_c() -> None:
    """Let SIGTERM (of `kill`, of a job scheduler) end us as Ctrl-C does, with all that we have started."""
    owner = os.getpid()

    def hear(number: int, frame: object) -> None:
        if os.getpid() == owner:
            raise KeyboardInterrupt
        # A fork of ours (a worker of datasets or torch) ends as it would without us.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, hear)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. No traceback reaches a user except for our faults."""
    try:
        result = group.main(args=None if arguments is None else list(arguments), standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Abort:
        click.echo("interrupted; the same command resumes", err=True)
        return 130
    except KeyboardInterrupt:
        click.echo("interrupted; the same command resumes", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except LoraEvalError as error:
        if error.exit_status == 1:
            raise
        click.echo(f"Error: {error}", err=True)
        return error.exit_status
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        click.echo(
            f"Error: no space left on the disk while writing {error.filename or 'the output'}", err=True
        )
        return 2
