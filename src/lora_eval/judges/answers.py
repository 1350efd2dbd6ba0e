"""Answers to judge, from the files that people have: FastChat's model_answer, alpaca_eval's model_outputs."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from lora_eval.errors import InputError
from lora_eval.judges.files import PlacedRow, Problems, clean_text, read_rows, take
from lora_eval.judges.mt_bench import Question, questions
from lora_eval.records import JudgeSuite


@dataclass(frozen=True, slots=True)
class AnswerSet:
    """One arm's answers by question; `questions` are those that the file itself holds."""

    arm: str
    path: Path
    answers: dict[str, tuple[str, ...]]
    questions: dict[str, Question]


def read_answers(named: Mapping[str, Path], question_files: Sequence[Path] = ()) -> list[AnswerSet]:
    """Return each arm's answers.

    Raises:
        InputError: with every fault of all files: rows that cannot be read, questions answered twice or that
            no file holds the text of.
    """
    problems = Problems()
    known = {str(key): question for key, question in questions().items()}
    for path in question_files:
        for row in read_rows(path, problems):
            known |= _question(row, problems)
    sets = [_read_set(arm, path, known, problems) for arm, path in named.items()]
    problems.check()
    return sets


def read_questions(path: Path | None) -> dict[str, Question]:
    """Return the questions of a file, FastChat's or alpaca_eval's; MT-Bench's where there is none.

    Raises:
        InputError: with every fault of the file.
    """
    if path is None:
        return {str(key): question for key, question in questions().items()}
    problems = Problems()
    found: dict[str, Question] = {}
    for row in read_rows(path, problems):
        if "question_id" in row.values:
            found |= _question(row, problems)
        elif (text := _instruction(row, problems)) is not None:
            key = _new_key(text, found)
            found[key] = Question(key, _category(row), (text,))
    problems.check()
    return found


def first_questions(every: Mapping[str, Question], limit: int | None) -> dict[str, Question]:
    """Return the first `limit` questions (None: all)."""
    return dict(itertools.islice(every.items(), limit))


def common_questions(sets: Sequence[AnswerSet], suite: JudgeSuite) -> dict[str, Question]:
    """Return the questions that every arm has answered, in the order of the first arm.

    Raises:
        InputError: there is none, or an arm lacks some (a run of another size is no partner).
    """
    every = {key: question for answers in sets for key, question in answers.questions.items()}
    common = [key for key in sets[0].answers if all(key in other.answers for other in sets)]
    lacking = {
        answers.arm: len(every) - len(answers.answers)
        for answers in sets
        if len(answers.answers) < len(every)
    }
    if not common:
        raise InputError(
            f"--answers: {' and '.join(s.arm for s in sets)} have no question of {suite} in common"
        )
    if lacking:
        counts = ", ".join(f"{arm} lacks {n} of {len(every)}" for arm, n in lacking.items())
        raise InputError(f"--answers: {counts}; all arms must answer the same questions")
    return {key: every[key] for key in common}


def _read_set(arm: str, path: Path, known: Mapping[str, Question], problems: Problems) -> AnswerSet:
    found = AnswerSet(arm, path, {}, {})
    for row in read_rows(path, problems):
        parsed = _fastchat(row, known, problems) if "choices" in row.values else _alpaca(row, found, problems)
        if parsed is None:
            continue
        key, question, turns = parsed
        if key in found.answers:
            problems.add(row.path, row.place, f"question {key} is answered twice")
        found.answers[key] = tuple(clean_text(text) for text in turns)
        found.questions[key] = question
    return found


def _fastchat(
    row: PlacedRow, known: Mapping[str, Question], problems: Problems
) -> tuple[str, Question, tuple[str, ...]] | None:
    identifier = take(row, "question_id", (int, str), "a number or text", problems)
    choices = row.values["choices"]
    first = choices[0] if isinstance(choices, list) and choices else None
    turns: Any = first.get("turns") if isinstance(first, dict) else None
    if not _texts(turns):
        problems.add(row.path, row.place, "choices: expected [{turns: [text, ...]}]")
        return None
    if identifier is None:
        return None
    question = _own_question(row) or known.get(str(identifier))
    if question is None:
        problems.add(
            row.path, row.place, f"question {identifier}: its text is not known; give --questions FILE"
        )
        return None
    return str(identifier), question, tuple(turns)


def _alpaca(
    row: PlacedRow, found: AnswerSet, problems: Problems
) -> tuple[str, Question, tuple[str, ...]] | None:
    text = _instruction(row, problems)
    output = take(row, "output", (str,), "text", problems)
    if text is None or output is None:
        return None
    key = _new_key(text, found.answers)
    return key, Question(key, _category(row), (text,)), (output,)


def _instruction(row: PlacedRow, problems: Problems) -> str | None:
    """An instruction with its input, as alpaca_eval puts them together."""
    instruction = take(row, "instruction", (str,), "text", problems)
    given = row.values.get("input")
    if instruction is None:
        return None
    return clean_text(f"{instruction}\n\n{given}" if given and isinstance(given, str) else instruction)


def _new_key(text: str, taken: Mapping[str, object]) -> str:
    """A key made of the text. One that occurs again is a question of its own, in the order of the file."""
    key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    repeats = sum(other.split("#")[0] == key for other in taken) if key in taken else 0
    return f"{key}#{repeats + 1}" if repeats else key


def _category(row: PlacedRow) -> str:
    dataset = row.values.get("dataset")
    return dataset if isinstance(dataset, str) else ""


def _own_question(row: PlacedRow) -> Question | None:
    """The question that `judge answers` has stored with its answer."""
    turns, reference = row.values.get("question_turns"), row.values.get("reference")
    if not _texts(turns):
        return None
    return _made(row, row.values["question_id"], turns, reference)


def _question(row: PlacedRow, problems: Problems) -> dict[str, Question]:
    identifier = take(row, "question_id", (int, str), "a number or text", problems)
    turns: Any = row.values.get("turns", [row.values["text"]] if "text" in row.values else None)
    reference: Any = row.values.get("reference")
    if not _texts(turns):
        problems.add(row.path, row.place, "turns: expected a list of texts")
        return {}
    if identifier is None:
        return {}
    return {str(identifier): _made(row, identifier, turns, reference)}


def _made(row: PlacedRow, identifier: int | str, turns: list[str], reference: Any) -> Question:
    known = tuple(clean_text(text) for text in reference) if _texts(reference) else ()
    asked = tuple(clean_text(text) for text in turns)
    return Question(identifier, str(row.values.get("category", "")), asked, known)


def _texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)
