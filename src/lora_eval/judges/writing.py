"""Answers to judge, written by the arms of an engine: MT-Bench's temperatures, the same seeds for every
arm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from lora_eval.judges.chatting import chat_ids
from lora_eval.judges.mt_bench import Question, answer_temperature
from lora_eval.protocols import Engine, GenerateRequest, Generation, Progress

_GREEDY = 1e-4  # below this temperature FastChat decodes greedily


def write_answers(
    engine: Engine,
    arm: str,
    questions: Mapping[str, Question],
    *,
    max_new_tokens: int,
    seed: int,
    temperature: float | None,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Return FastChat's rows of answers, with why each turn ended, its tokens and its seed.

    Turn 2 is asked after the arm's own answer to turn 1. `temperature` None takes MT-Bench's, by category. A
    turn for which the context has no room is answered with an empty text and finish reason `no room`.

    Raises:
        InputError: the tokenizer has no chat template, or it refuses the conversation.
    """
    said: dict[str, list[Generation]] = {key: [] for key in questions}
    for turn in range(1, max((len(question.turns) for question in questions.values()), default=0) + 1):
        asked = {key: question for key, question in questions.items() if len(question.turns) >= turn}
        requests = {
            key: _request(engine, arm, key, question, turn, said[key], max_new_tokens, seed, temperature)
            for key, question in asked.items()
        }
        possible = {key: request for key, request in requests.items() if request.max_new_tokens > 0}
        answers = engine.generate(arm, list(possible.values()), progress) if possible else []
        found = dict(zip(possible, answers, strict=True))
        for key in asked:
            said[key].append(found.get(key, Generation("", (), "no room")))
    return [_row(arm, key, question, said[key], seed, temperature) for key, question in questions.items()]


def turn_seed(seed: int, key: str, turn: int) -> int:
    """Return the seed of one turn: the same for all arms, another for each question and turn."""
    digest = hashlib.sha256(f"{seed}:{key}:{turn}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _request(
    engine: Engine, arm: str, key: str, question: Question, turn: int, said: list[Generation],
    max_new_tokens: int, seed: int, temperature: float | None,
) -> GenerateRequest:  # fmt: skip
    messages: list[tuple[str, str]] = []
    for number in range(turn):
        messages.append(("user", question.turns[number]))
        if number < turn - 1:
            messages.append(("assistant", said[number].text.strip()))
    ids = chat_ids(engine.tokenizer, tuple(messages), arm)
    heat = answer_temperature(question) if temperature is None else temperature
    sampling = {} if heat < _GREEDY else {"do_sample": True, "temperature": heat}
    room = min(max_new_tokens, engine.max_length - len(ids))
    return GenerateRequest(ids, (), max(0, room), sampling, turn_seed(seed, key, turn))


def _row(
    arm: str, key: str, question: Question, said: list[Generation], seed: int, temperature: float | None
) -> dict[str, Any]:
    return {
        "question_id": question.id,
        "model_id": arm,
        "category": question.category,
        "question_turns": list(question.turns),
        "reference": list(question.reference),
        "choices": [{"index": 0, "turns": [answer.text.strip() for answer in said]}],
        "finish_reasons": [answer.finish_reason for answer in said],
        "new_tokens": [len(answer.token_ids) for answer in said],
        "temperature": answer_temperature(question) if temperature is None else temperature,
        "seeds": [turn_seed(seed, key, turn) for turn in range(1, len(said) + 1)],
    }
