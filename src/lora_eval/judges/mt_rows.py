"""Rows of FastChat's judgments: `*_single.jsonl` (a score) and `*_pair.jsonl` (a winner in each order)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_eval.judges.files import PlacedRow, Problems, parse_rows, take
from lora_eval.judges.games import Game
from lora_eval.judges.mt_bench import questions

_WINNERS = {"model_1": 0.0, "model_2": 1.0, "tie": 0.5, "error": None}  # the score of model_2


@dataclass(frozen=True, slots=True)
class Rating:
    """One score; None: the judge's text had no rating. `category` is None for a question that MT-Bench has
    not.

    `text` is what the judge wrote, where it was stored.
    """

    model: str
    judge: str
    question: str
    category: str | None
    turn: int
    score: float | None
    text: str | None


def read_judgments(paths: Sequence[Path]) -> tuple[list[Rating], list[Game]]:
    """Return the ratings, and the games (two for each row of a `_pair` file), of all files in their order.

    Raises:
        InputError: with every fault of all files, each with its place.
    """
    parsed = parse_rows(paths, _parse, _hint)
    ratings = [value for value in parsed if isinstance(value, Rating)]
    return ratings, [game for value in parsed if isinstance(value, tuple) for game in value]


def _parse(row: PlacedRow, problems: Problems) -> Rating | tuple[Game, Game] | None:
    return _pair(row, problems) if "g1_winner" in row.values else _single(row, problems)


def _single(row: PlacedRow, problems: Problems) -> Rating | None:
    before = len(problems.lines)
    question, turn, judge = _common(row, problems)
    model = take(row, "model", (str,), "a model's name", problems)
    score = take(row, "score", (int, float, type(None)), "a number (-1: no rating)", problems)
    text = take(row, "judgment", (str, type(None)), "text", problems) if "judgment" in row.values else None
    if score is not None and score != -1 and not (math.isfinite(score) and score >= 0):
        problems.add(
            row.path, row.place, f"score: expected a rating of 0 or more, or -1 for none, got {score}"
        )
    if len(problems.lines) > before:
        return None
    value = None if score is None or score == -1 else float(score)
    return Rating(model, judge, question, category_of(question), turn, value, text)


def _pair(row: PlacedRow, problems: Problems) -> tuple[Game, Game] | None:
    before = len(problems.lines)
    question, turn, judge = _common(row, problems)
    one, two = (take(row, f"model_{i}", (str,), "a model's name", problems) for i in (1, 2))
    winners = [take(row, key, (str,), "text", problems) for key in ("g1_winner", "g2_winner")]
    for key, winner in zip(("g1_winner", "g2_winner"), winners, strict=True):
        if winner is not None and winner not in _WINNERS:
            known = ", ".join(_WINNERS)
            problems.add(row.path, row.place, f"{key}: expected one of {known}, got '{winner}'")
    if one is not None and one == two:
        problems.add(row.path, row.place, f"model_1 and model_2 are both '{one}'")
    if len(problems.lines) > before:
        return None
    shared = {"judge": judge, "prompt": question, "item": f"{question} turn {turn}", "a": one, "b": two}
    return (
        Game(**shared, first="a", score=_WINNERS[winners[0]]),
        Game(**shared, first="b", score=_WINNERS[winners[1]]),
    )


def _common(row: PlacedRow, problems: Problems) -> tuple[str, int, str]:
    """Question, turn and the judge's name."""
    question = take(row, "question_id", (int, str), "a number or text", problems)
    turn = take(row, "turn", (int,), "1 or 2", problems)
    if turn is not None and turn not in (1, 2):
        problems.add(row.path, row.place, f"turn: expected 1 or 2, got {turn}")
    judge = _judge(row, problems)
    return str(question), turn or 0, judge


def _judge(row: PlacedRow, problems: Problems) -> str:
    """FastChat stores [name, prompt]: the prompt differs from category to category, the judge does not."""
    judge: Any = row.values.get("judge", "unknown judge")
    if isinstance(judge, str):
        return judge
    if isinstance(judge, list) and judge and isinstance(judge[0], str):
        return judge[0]
    problems.add(row.path, row.place, f"judge: expected [name, prompt], got {judge!r}")
    return ""


def category_of(question: str) -> str | None:
    """Return the category of one of MT-Bench's questions."""
    found = questions().get(int(question)) if question.isascii() and question.isdigit() else None
    return found.category if found else None


def _hint(keys: Sequence[str]) -> str:
    if "preference" in keys:
        return "no row has a score; this looks like alpaca_eval's annotations: use --suite alpaca-eval"
    if "choices" in keys:
        return "no row has a score; these are a model's answers, which have not been judged"
    return ""
