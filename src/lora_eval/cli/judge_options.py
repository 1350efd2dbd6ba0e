"""Options that the paid judge commands share, and how they end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_eval.cli.judge_trust import trust_options

if TYPE_CHECKING:
    from lora_eval.judges.calls import Plan
    from lora_eval.records import JudgeProfile

SUITES = ("alpaca-eval", "mt-bench", "pairwise")


def judge_options(function: Callable[..., Any], *, required: bool = True) -> Callable[..., Any]:
    """Add the options that name the judge."""
    for option in reversed((
        click.option("--judge", required=required, metavar="NAME_OR_PATH",
                     help="A judge profile: a packaged one, a plugin's, a YAML file; or local:PATH."),
        click.option("--judge-model", metavar="MODEL",
                     help="The model to ask (default: the profile's); local:PATH: by our engine."),
        click.option("--judge-url", metavar="URL",
                     help="The endpoint, with its /v1 (default: the profile's)."),
    )):  # fmt: skip
        function = option(function)
    return function


def judged_suite_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `compare` that only a judged suite needs."""
    for option in reversed((
        click.option("--questions", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
                     help="Of a judged suite: your own questions."),
        click.option("--max-new-tokens", type=click.IntRange(1), default=1024, show_default=True,
                     help="Of each turn of a judged suite."),
        click.option("--temperature", type=click.FloatRange(0), metavar="T",
                     help="Of a judged suite (default: MT-Bench's, by category)."),
        click.option("--max-cost", type=click.FloatRange(0), metavar="DOLLARS", help="The judge's."),
    )):  # fmt: skip
        function = option(function)
    return judge_options(trust_options(control_option(function)), required=False)


def control_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option that says how often the judge compares the base with itself."""
    option = click.option(
        "--control", type=click.IntRange(0), metavar="N",
        help="Questions that the base answers twice, for the judge to compare it with itself (default: a "
        "tenth, at least 16).",
    )  # fmt: skip
    return option(function)


def plan_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what is judged."""
    for option in reversed((
        click.option("--suite", type=click.Choice(SUITES), required=True, help="What is asked of the judge."),
        click.option("--answers", multiple=True, required=True, metavar="ARM=FILE",
                     help="An arm's answers (FastChat's model_answer or alpaca_eval's model_outputs); "
                     "repeatable, the base first."),
        click.option("--questions", type=click.Path(path_type=Path, dir_okay=False), multiple=True,
                     metavar="FILE",
                     help="Questions that the answers name by question_id (default: MT-Bench's)."),
        click.option("--all-pairs", is_flag=True,
                     help="Compare every two arms, not each with the base only."),
        click.option("--orders", type=click.Choice(["both", "alpaca"]), default="both", show_default=True,
                     help="Show each pair in both orders, or in the one that alpaca_eval draws."),
        click.option("--repeat", type=click.IntRange(1, 20), default=1, show_default=True,
                     help="Ask everything so many times."),
        click.option("--limit", type=click.IntRange(1), metavar="N", help="The first N questions only."),
    )):  # fmt: skip
        function = option(function)
    return judge_options(function)


def read_profile(
    judge: str, judge_model: str | None, judge_url: str | None, suite: str = "pairwise"
) -> JudgeProfile:
    """Return the profile that the options name; `--judge local:PATH` takes the one that needs no sampling."""
    from lora_eval.judges.profiles import LOCAL, load_profile

    path = local_path(judge, judge_model)
    if judge.startswith(LOCAL):
        judge = "mtbench-single" if suite == "mt-bench" else "vllm-choice"
    if path is not None:
        from lora_eval.cli.judge_local import local_name

        judge_model = local_name(path)
    return load_profile(judge, model=judge_model, base_url=judge_url)


def local_path(judge: str, judge_model: str | None) -> str | None:
    """Return the model that our own engine opens as the judge, None where an endpoint is asked: `local:PATH`
    is `--judge-model`, the model of a profile, or `--judge` itself.
    """
    from lora_eval.judges.profiles import LOCAL, find_profile

    if judge.startswith(LOCAL):
        if judge_model:
            raise click.UsageError(f"--judge {judge}: names the model already; leave --judge-model away")
        return judge.removeprefix(LOCAL)
    model = judge_model or find_profile(judge).model or ""
    return model.removeprefix(LOCAL) if model.startswith(LOCAL) else None


def read_plan(options: dict[str, Any]) -> Plan:
    """Return the plan that the options of `plan_options` describe."""
    from lora_eval.judges.answers import read_answers
    from lora_eval.judges.calls import make_plan

    files = named_files(options["answers"])
    profile = read_profile(options["judge"], options["judge_model"], options["judge_url"], options["suite"])
    sets = read_answers(files, options["questions"])
    return make_plan(
        options["suite"],
        profile,
        sets,
        all_pairs=options["all_pairs"],
        orders=options["orders"],
        repeats=options["repeat"],
        limit=options["limit"],
    )


def named_files(values: tuple[str, ...]) -> dict[str, Path]:
    """Return ARM=FILE options as a mapping; every arm has one file."""
    named: dict[str, Path] = {}
    for value in values:
        arm, equals, path = value.partition("=")
        if not equals or not arm or not path:
            raise click.UsageError(f"--answers {value}: expected ARM=FILE")
        if arm in named:
            raise click.UsageError(f"--answers: the arm '{arm}' is given twice")
        named[arm] = Path(path)
    return named
