"""`lora-eval judge`: what another model says of the answers."""

from __future__ import annotations

import click

from lora_eval.cli.judge_answers import answers
from lora_eval.cli.judge_compare import compare
from lora_eval.cli.judge_report import report
from lora_eval.cli.judge_run import calibrate, plan, run


@click.group()
def command() -> None:
    r"""Let another model judge the answers, and report what verdicts say.

    \b
    Example:
      lora-eval judge report --suite alpaca-eval --annotations annotations.json
      lora-eval judge plan --suite pairwise --judge openai-text --judge-model MODEL \
          --answers base=base.json --answers tuned=tuned.json
    """


for each in (compare, answers, plan, run, calibrate, report):
    command.add_command(each)
