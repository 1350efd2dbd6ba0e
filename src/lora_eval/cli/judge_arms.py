"""Base, adapters, folders and served models for the judge commands: opened one after the other, their answers
kept.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_eval.errors import OutputError

if TYPE_CHECKING:
    from lora_eval.evaluate import Arms
    from lora_eval.evaluate.scorers import Scorer, Scorers
    from lora_eval.judges.mt_bench import Question
    from lora_eval.protocols import Engine, Progress
    from lora_eval.records import Variant


@dataclass(frozen=True, slots=True)
class Written:
    """The files of answers by arm (base first), what each arm is, and what a report must say of them. `again`
    is the file of the base's second answers, None where none were asked for.
    """

    files: dict[str, Path]
    again: Path | None
    variants: dict[str, Variant]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Job:
    """One file to write: the answers of `arm` under the name `name`, with the settings of `write_answers`."""

    name: str
    arm: str
    path: Path
    asked: Mapping[str, Question]
    writing: dict[str, Any]
    mark: str


def arm_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name the arms and say how they answer."""
    for option in reversed((
        click.option("--base", required=True, metavar="[NAME=]ID_OR_PATH[@REV]",
                     help="The model before fine-tuning."),
        click.option("--adapter", "adapters", multiple=True, metavar="[NAME=]PATH[@REV]",
                     help="A LoRA adapter; repeatable."),
        click.option("--arm", "others", multiple=True, metavar="NAME=KIND:PATH",
                     help="A merged, gptq or awq folder, or served:URL#MODEL of a server; repeatable."),
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
    arms = parse_arms(options["base"], options["adapters"], options["others"], settings, served=True)
    arms.check()
    return arms


def read_asked(options: Mapping[str, Any]) -> dict[str, Question]:
    """Return the questions of `arm_options`."""
    from lora_eval.judges.answers import first_questions, read_questions

    return first_questions(read_questions(options["questions"]), options["limit"])


def write_arms(
    arms: Arms,
    asked: Mapping[str, Question],
    out: Path,
    options: Mapping[str, Any],
    progress: Progress,
    again: Mapping[str, Question] | None = None,
) -> Written:
    """Return the answers of every arm; those that are there are kept. `again` are questions that the base
    answers a second time, with other seeds.

    Raises:
        OutputError: a file holds answers of other weights, questions or settings.
        ServerError: a served arm's server cannot be reached, or does not have the model.
    """
    from lora_eval.evaluate.arms import apart_notes, choose_quantization
    from lora_eval.evaluate.scorers import Scorers

    quantization, notes = choose_quantization(arms)
    scorers = Scorers("transformers", progress)
    writing = {name: options[name] for name in ("max_new_tokens", "temperature", "seed")}
    with contextlib.ExitStack() as opened:
        # Servers first: one that is down is told before hours of answers, and only it says what it serves.
        served = _open_served(arms, scorers, opened)
        variants = _variants_of(arms) | {name: scorer.engine.variant for name, scorer in served.items()}

        def job(name: str, arm: str, questions: Mapping[str, Question], settings: dict[str, Any]) -> _Job:
            mark = _mark(variants[arm], None if arm in served else quantization, questions, settings)
            return _Job(name, arm, out / f"{name}.jsonl", questions, settings, mark)

        jobs = [job(arm, arm, asked, writing) for arm in variants]
        if again:
            second = writing | {"seed": writing["seed"] + 1}
            jobs.append(job(f"{arms.base_name}#again", arms.base_name, again, second))
        left = [each for each in jobs if not _is_kept(each.path, each.mark)]
        openings: list[tuple[Sequence[str], Callable[[], Scorer]]] = [
            *(([name], lambda scorer=scorer: scorer) for name, scorer in served.items()),
            ([arms.base_name, *arms.shared], partial(scorers.shared, arms, quantization)),
            *(([name], partial(scorers.apart, arms, name, quantization)) for name in arms.apart),
            *(([other.name], partial(scorers.folder, other, arms.dtype)) for other in arms.others),
        ]
        for members, opening in openings:
            _answer_all([each for each in left if each.arm in members], opening, progress)
        told = (f"arm {name}: {note}" for name, scorer in served.items() for note in scorer.notes)
        return Written(
            files={each.name: each.path for each in jobs if each.name in variants},
            again=jobs[-1].path if again else None,
            variants=variants,
            notes=(*notes, *apart_notes(arms), *told),
        )


def _open_served(arms: Arms, scorers: Scorers, opened: contextlib.ExitStack) -> dict[str, Scorer]:
    found = {}
    for arm in arms.served:
        found[arm.name] = scorers.served(arm, arms.base)
        opened.callback(found[arm.name].close)
    return found


def _variants_of(arms: Arms) -> dict[str, Variant]:
    """What each arm on this machine is, with its fingerprint; base first."""
    from lora_eval.evaluate.arms import adapter_variant, folder_variant, shared_variants

    shared = shared_variants(arms)
    parent = shared[arms.base_name].fingerprint
    apart = {name: adapter_variant(arms, name, parent) for name in arms.apart}
    return shared | apart | {other.name: folder_variant(other) for other in arms.others}


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


def _answer_all(jobs: Sequence[_Job], opening: Callable[[], Scorer], progress: Progress) -> None:
    """Write the files that one opened model can write; nothing is opened where there is none."""
    if not jobs:
        return
    scorer = opening()
    for job in jobs:
        _answer(scorer.engine, job, progress)
    scorer.close()


def _answer(engine: Engine, job: _Job, progress: Progress) -> None:
    from lora_eval.judges.writing import write_answers
    from lora_eval.schema import write_text

    rows = write_answers(engine, job.arm, job.asked, progress=progress, **job.writing)
    marked = [row | {"model_id": job.name, "made_by": job.mark} for row in rows]
    write_text(job.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in marked))
