"""MT-Bench's rules: questions, references, the eight judge prompts, and when each is used.

Zheng et al. 2023 (arXiv 2306.05685); fastchat/llm_judge at 0e6d3e4. The data is in templates/judges/mt_bench.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from lora_eval.errors import InputError
from lora_eval.resources import resource_folder

Mode = Literal["single", "pair"]
Messages = tuple[tuple[str, str], ...]
CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
# "arena-hard-200" is no category of MT-Bench; FastChat's judge treats it the same way.
_WITH_REFERENCE = frozenset({"math", "reasoning", "coding", "arena-hard-200"})
_TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
    "arena-hard-200": 0.0,
}
_OTHER_TEMPERATURE = 0.7
ANSWER_TOKENS = 1024  # of each turn
JUDGE_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Question:
    """One question of two turns; `reference` holds the reference answers of both (empty: none)."""

    id: int | str
    category: str
    turns: tuple[str, ...]
    reference: tuple[str, ...] = ()
    required_temperature: float | None = None


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """One of the eight prompts."""

    name: str
    system: str
    template: str


@cache
def questions() -> dict[int, Question]:
    """Return MT-Bench's 80 questions by id, with the references of the 30 that have them."""
    references = {
        int(row["question_id"]): tuple(row["choices"][0]["turns"]) for row in _rows("reference_answer.jsonl")
    }
    return {
        int(row["question_id"]): Question(
            int(row["question_id"]),
            row["category"],
            tuple(row["turns"]),
            references.get(int(row["question_id"]), ()),
            row.get("required_temperature"),
        )
        for row in _rows("question.jsonl")
    }


@cache
def judge_prompts() -> dict[str, JudgePrompt]:
    """Return the eight prompts by name."""
    return {
        row["name"]: JudgePrompt(row["name"], row["system_prompt"], row["prompt_template"])
        for row in _rows("judge_prompts.jsonl")
    }


def answer_temperature(question: Question) -> float:
    """Return the temperature at which a model answers; below 1e-4 decoding is greedy."""
    if question.required_temperature is not None:
        return question.required_temperature
    return _TEMPERATURES.get(question.category, _OTHER_TEMPERATURE)


def prompt_name(mode: Mode, category: str, turn: int) -> str:
    """Return which of the eight prompts judges this turn."""
    with_reference = category in _WITH_REFERENCE
    name = {
        ("single", False): "single-v1",
        ("single", True): "single-math-v1",
        ("pair", False): "pair-v2",
        ("pair", True): "pair-math-v1",
    }[mode, with_reference]
    return f"{name}-multi-turn" if turn == 2 else name


def judge_messages(question: Question, turn: int, answers: Sequence[Sequence[str]]) -> Messages:
    """Return the (role, text) messages that judge one turn of one model's answers, or of two in their order.

    Each of `answers` holds the answers to both turns (one is enough for turn 1). Texts are put in as values:
    braces in them are text.

    Raises:
        InputError: a turn or a reference is missing.
    """
    prompt = judge_prompts()[prompt_name("single" if len(answers) == 1 else "pair", question.category, turn)]
    slots = _slots(question, turn, answers)
    try:
        text = prompt.template.format(**slots)
    except KeyError as error:
        raise InputError(
            f"question {question.id}: no text for {error.args[0]} of prompt {prompt.name}"
        ) from None
    return (("system", prompt.system), ("user", text))


def _slots(question: Question, turn: int, answers: Sequence[Sequence[str]]) -> Mapping[str, str]:
    if len(question.turns) < turn or any(len(turns) < turn for turns in answers):
        raise InputError(f"question {question.id}: turn {turn} has no question or no answer")
    slots = {f"ref_answer_{number}": text for number, text in enumerate(question.reference, 1)}
    for letter, turns in zip(("",) if len(answers) == 1 else ("_a", "_b"), answers, strict=True):
        if turn == 1:
            slots[f"answer{letter}"] = turns[0]
        else:
            slots |= {f"answer{letter}_{number}": turns[number - 1] for number in (1, 2)}
    if turn == 1:
        return {**slots, "question": question.turns[0]}
    return {**slots, "question_1": question.turns[0], "question_2": question.turns[1]}


def _rows(name: str) -> list[dict[str, Any]]:
    text = (resource_folder("templates") / "judges" / "mt_bench" / name).read_text("utf-8")
    return [json.loads(line) for line in text.split("\n") if line]
