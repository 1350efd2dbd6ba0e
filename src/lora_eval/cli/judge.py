"""`lora-eval judge`: what another model says of the answers."""

from __future__ import annotations

import click

from lora_eval.cli.judge_report import report


@click.group()
def command() -> None:
    r"""Let another model judge the answers, and report what verdicts say.

    \b
    Example:
      lora-eval judge report --suite alpaca-eval --annotations annotations.json
    """


command.add_command(report)
