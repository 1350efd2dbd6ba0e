"""`lora-eval judge answers`: the arms' own answers, for a judge to compare."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lora_eval.evaluate import Arms
    from lora_eval.judges.mt_bench import Question
    from lora_eval.protocols import Engine, Progress


@click.command(epilog="Writes DIR/ARM.jsonl, FastChat's format of answers; arms that are there are kept.")
@click.option(
    "--base", required=True, metavar="[NAME=]ID_OR_PATH[@REV]", help="The model before fine-tuning."
)
@click.option(
    "--adapter", "adapters", multiple=True, metavar="[NAME=]PATH[@REV]", help="A LoRA adapter; repeatable."
)
@click.option("--arm", "others", multiple=True, metavar="NAME=KIND:PATH",
              help="A merged, gptq or awq folder; repeatable.")  # fmt: skip
@click.option("--suite", type=click.Choice(["mt-bench", "pairwise"]), default="mt-bench", show_default=True,
              help="MT-Bench's questions and temperatures, or your own questions.")  # fmt: skip
@click.option("--questions", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Questions: FastChat's {question_id, turns} or alpaca_eval's {instruction}.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, metavar="DIR",
              help="Folder for the answers.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), metavar="N", help="The first N questions only.")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=1024, show_default=True, help="Of each turn."
)
@click.option(
    "--temperature", type=click.FloatRange(0), metavar="T", help="For all questions (default: by category)."
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Turns get seeds from it, the same in all arms."
)
@click.option("--dtype", default="auto", show_default=True, help="Of the base's weights.")
@click.option("--quantize", type=click.Choice(["auto", "nf4", "none"]), default="auto", show_default=True,
              help="The base as in training, or as said.")  # fmt: skip
@click.option("-q", "--quiet", "silent", is_flag=True, help="No progress bar.")
def answers(
    base: str, adapters: tuple[str, ...], others: tuple[str, ...], suite: str, questions: Path | None, out:
    Path, limit: int | None, silent: bool, dtype: str, quantize: str, **writing: Any,
) -> None:  # fmt: skip
    r"""Let base and adapters answer the questions that a judge is then asked about.

    \b
    Example:
      lora-eval judge answers --base ./base --adapter tuned=./adapter --out answers
    """
    from lora_eval.cli.compare_options import parse_arms
    from lora_eval.cli.progress import progress_bar
    from lora_eval.judges.answers import first_questions, read_questions
    from lora_eval.models.quiet import quiet

    if suite == "pairwise" and questions is None:
        raise click.UsageError("--suite pairwise: give --questions FILE")
    asked = first_questions(read_questions(questions), limit)
    arms = parse_arms(base, adapters, others, {"dtype": dtype, "quantize": quantize, "add_original": False})
    arms.check()
    with progress_bar(not silent) as progress, quiet():
        written = _write(arms, asked, out, writing, progress)
    for arm, path in written:
        click.echo(f"{arm}: {path}", err=True)


def _write(
    arms: Arms, asked: dict[str, Question], out: Path, writing: dict[str, Any], progress: Progress
) -> list[tuple[str, Path]]:
    """Open each model in turn and let it answer; returns the file of each arm."""
    from lora_eval.evaluate.arms import choose_quantization
    from lora_eval.evaluate.scorers import Scorers

    quantization, _ = choose_quantization(arms)
    scorers = Scorers("transformers", progress)
    openings: list[tuple[list[str], Callable[[], Any]]] = [
        ([arms.base_name, *arms.shared], partial(scorers.shared, arms, quantization)),
        *(([name], partial(scorers.apart, arms, name, quantization)) for name in arms.apart),
        *(([other.name], partial(scorers.folder, other, arms.dtype)) for other in arms.others),
    ]
    written = []
    for members, opening in openings:
        files = {arm: out / f"{arm}.jsonl" for arm in members}
        if not all(path.exists() for path in files.values()):
            scorer = opening()
            for arm, path in files.items():
                if not path.exists():
                    _answer(scorer.engine, arm, asked, path, writing, progress)
            scorer.close()
        written += list(files.items())
    return written


def _answer(
    engine: Engine,
    arm: str,
    asked: dict[str, Question],
    path: Path,
    writing: dict[str, Any],
    progress: Progress,
) -> None:
    from lora_eval.judges.writing import write_answers
    from lora_eval.schema import write_text

    rows = write_answers(engine, arm, asked, progress=progress, **writing)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
