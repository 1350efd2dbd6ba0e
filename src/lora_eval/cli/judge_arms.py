"""Base, adapters and folders for the judge commands: opened one after the other, their answers kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_eval.errors import OutputError

if TYPE_CHECKING:
    from lora_eval.evaluate import Arms
    from lora_eval.judges.mt_bench import Question
    from lora_eval.protocols import Engine, Progress
    from lora_eval.records import Variant


def arm_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name the arms and say how they answer."""
    for option in reversed((
        click.option("--base", required=True, metavar="[NAME=]ID_OR_PATH[@REV]",
                     help="The model before fine-tuning."),
        click.option("--adapter", "adapters", multiple=True, metavar="[NAME=]PATH[@REV]",
                     help="A LoRA adapter; repeatable."),
        click.option("--arm", "others", multiple=True, metavar="NAME=KIND:PATH",
                     help="A merged, gptq or awq folder; repeatable."),
        click.option("--questions", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
                     help="FastChat's {question_id, turns} or alpaca_eval's {instruction} (MT-Bench's)."),
        click.option("--limit", type=click.IntRange(1), metavar="N", help="The first N questions only."),
        click.option("--max-new-tokens", type=click.IntRange(1), default=1024, show_default=True,
                     help="Of each turn."),
        click.option("--temperature", type=click.FloatRange(0), metavar="T",
                     help="For all questions (default: MT-Bench's, by category)."),
        click.option("--seed", type=int, default=0, show_default=True,
                     help="Turns get their seeds from it, the same in all arms."),
        click.option("--dtype", default="auto", show_default=True, help="Of the base's weights."),
        click.option("--quantize", type=click.Choice(["auto", "nf4", "none"]), default="auto",
                     show_default=True, help="The base as in training, or as said."),
    )):  # fmt: skip
        function = option(function)
    return function


def read_arms(options: Mapping[str, Any]) -> Arms:
    """Return the arms of `arm_options`, checked."""
    from lora_eval.cli.compare_options import parse_arms

    settings = {"dtype": options["dtype"], "quantize": options["quantize"], "add_original": False}
    arms = parse_arms(options["base"], options["adapters"], options["others"], settings)
    arms.check()
    return arms


def read_asked(options: Mapping[str, Any]) -> dict[str, Question]:
    """Return the questions of `arm_options`."""
    from lora_eval.judges.answers import first_questions, read_questions

    return first_questions(read_questions(options["questions"]), options["limit"])


def variants_of(arms: Arms) -> dict[str, Variant]:
    """Return what each arm is, with its fingerprint; base first."""
    from lora_eval.evaluate.arms import adapter_variant, folder_variant, shared_variants

    shared = shared_variants(arms)
    parent = shared[arms.base_name].fingerprint
    apart = {name: adapter_variant(arms, name, parent) for name in arms.apart}
    return shared | apart | {other.name: folder_variant(other) for other in arms.others}


def write_arms(
    arms: Arms,
    variants: Mapping[str, Variant],
    asked: dict[str, Question],
    out: Path,
    options: Mapping[str, Any],
    progress: Progress,
) -> dict[str, Path]:
    """Return the file of answers of each arm; those that are there are kept.

    Raises:
        OutputError: a file holds answers of other weights, questions or settings.
    """
    from lora_eval.evaluate.arms import choose_quantization
    from lora_eval.evaluate.scorers import Scorers

    quantization, _ = choose_quantization(arms)
    scorers = Scorers("transformers", progress)
    openings: list[tuple[list[str], Callable[[], Any]]] = [
        ([arms.base_name, *arms.shared], partial(scorers.shared, arms, quantization)),
        *(([name], partial(scorers.apart, arms, name, quantization)) for name in arms.apart),
        *(([other.name], partial(scorers.folder, other, arms.dtype)) for other in arms.others),
    ]
    writing = {name: options[name] for name in ("max_new_tokens", "temperature", "seed")}
    files = {arm: out / f"{arm}.jsonl" for arm in variants}
    marks = {arm: _mark(variants[arm], quantization, asked, writing) for arm in variants}
    missing = {arm for arm, path in files.items() if not _is_kept(path, marks[arm])}
    for members, opening in openings:
        wanted = [arm for arm in members if arm in missing]
        if wanted:
            scorer = opening()
            for arm in wanted:
                _answer(scorer.engine, arm, asked, files[arm], marks[arm], writing, progress)
            scorer.close()
            del scorer
    return files


def _mark(
    variant: Variant,
    quantization: dict[str, Any] | None,
    asked: Mapping[str, Question],
    writing: dict[str, Any],
) -> str:
    """What decides an arm's answers."""
    from dataclasses import asdict

    from lora_eval.fingerprint import fingerprint_data

    questions = [asdict(question) for question in asked.values()]
    weights = [variant.fingerprint, variant.parent, quantization]
    return fingerprint_data([weights, questions, writing])


def _is_kept(path: Path, mark: str) -> bool:
    if not path.exists():
        return False
    with path.open(encoding="utf-8") as file:
        try:
            made = json.loads(file.readline()).get("made_by")
        except (ValueError, AttributeError):
            made = None
    if made != mark:
        raise OutputError(
            f"{path}: holds answers of other weights, questions or settings; give another --out, or remove it"
        )
    return True


def _answer(
    engine: Engine,
    arm: str,
    asked: dict[str, Question],
    path: Path,
    mark: str,
    writing: dict[str, Any],
    progress: Progress,
) -> None:
    from lora_eval.judges.writing import write_answers
    from lora_eval.schema import write_text

    rows = write_answers(engine, arm, asked, progress=progress, **writing)
    write_text(path, "".join(json.dumps(row | {"made_by": mark}, ensure_ascii=False) + "\n" for row in rows))
