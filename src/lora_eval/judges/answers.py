"""Answers to judge, from the files that people have: FastChat's model_answer, alpaca_eval's model_outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_eval.errors import InputError
from lora_eval.judges.files import PlacedRow, Problems, read_rows, take
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
    known |= {key: question for path in question_files for key, question in _read_questions(path, problems)}
    sets = [_read_set(arm, path, known, problems) for arm, path in named.items()]
    problems.check()
    return sets


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
        found.answers[key] = turns
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
    question = known.get(str(identifier))
    if question is None:
        problems.add(
            row.path, row.place, f"question {identifier}: its text is not known; give --questions FILE"
        )
        return None
    return str(identifier), question, tuple(turns)


def _alpaca(
    row: PlacedRow, found: AnswerSet, problems: Problems
) -> tuple[str, Question, tuple[str, ...]] | None:
    before = len(problems.lines)
    instruction = take(row, "instruction", (str,), "text", problems)
    output = take(row, "output", (str,), "text", problems)
    given = row.values.get("input") or ""
    if len(problems.lines) > before:
        return None
    text = f"{instruction}\n\n{given}" if isinstance(given, str) and given else instruction
    key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    # An instruction that occurs again is a question of its own, in the order of the file.
    repeats = sum(other.split("#")[0] == key for other in found.answers) if key in found.answers else 0
    key = f"{key}#{repeats + 1}" if repeats else key
    category = row.values.get("dataset")
    return key, Question(key, category if isinstance(category, str) else "", (text,)), (output,)


def _read_questions(path: Path, problems: Problems) -> list[tuple[str, Question]]:
    found = []
    for row in read_rows(path, problems):
        identifier = take(row, "question_id", (int, str), "a number or text", problems)
        turns: Any = row.values.get("turns", [row.values["text"]] if "text" in row.values else None)
        reference: Any = row.values.get("reference", [])
        if not _texts(turns):
            problems.add(row.path, row.place, "turns: expected a list of texts")
        elif identifier is not None:
            category = str(row.values.get("category", ""))
            references = tuple(reference) if _texts(reference) else ()
            found.append((str(identifier), Question(identifier, category, tuple(turns), references)))
    return found


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)
