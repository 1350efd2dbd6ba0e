"""Our own verdicts, as `judge run` stores them, turned into what the reports are made of."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from lora_eval.errors import InputError
from lora_eval.judges.alpaca_rows import Preference
from lora_eval.judges.games import Game
from lora_eval.judges.mt_rows import Rating
from lora_eval.judges.store import FILE, read_verdicts
from lora_eval.records import JudgeSuite, JudgeVerdict


def is_own(path: Path) -> bool:
    """Whether the path is a folder of `judge run`, or its file of verdicts (by its first line)."""
    if path.is_dir():
        return (path / FILE).is_file()
    try:
        with path.open("rb") as file:
            first = json.loads(file.readline(1 << 24))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and {"key", "judge", "suite", "value", "attempt"} <= set(first)


def read_own(paths: Sequence[Path], suite: JudgeSuite) -> list[JudgeVerdict]:
    """Return the verdicts of all files, of each call the last reply.

    Raises:
        RecordError: a line is no verdict.
        InputError: they are of another suite.
    """
    found: list[JudgeVerdict] = []
    for path in paths:
        verdicts = read_verdicts(path)
        other = {verdict.suite for verdict in verdicts} - {suite}
        if other:
            raise InputError(
                f"{path}: holds verdicts of {', '.join(sorted(other))}: use --suite {min(other)}"
            )
        found += verdicts
    return last_replies(found)


def last_replies(verdicts: Iterable[JudgeVerdict]) -> list[JudgeVerdict]:
    """Return one verdict for each call, the last reply to it, in the order of the plan."""
    last: dict[tuple[object, ...], JudgeVerdict] = {}
    for verdict in verdicts:
        call = (
            verdict.judge,
            verdict.prompt,
            verdict.turn,
            verdict.a,
            verdict.b,
            verdict.first,
            verdict.repeat,
        )
        if call not in last or last[call].attempt < verdict.attempt:
            last[call] = verdict
    return sorted(last.values(), key=lambda verdict: verdict.place)


def notes(verdicts: Sequence[JudgeVerdict]) -> list[str]:
    """Return what must be said of the replies: other models, missing token counts, missing verdicts."""
    found = []
    models = list(dict.fromkeys(verdict.model for verdict in verdicts if verdict.model))
    if len(models) > 1:
        found.append(
            f"the endpoint answered with several models: {', '.join(models)}; the judge changed in between"
        )
    prints = {verdict.system_fingerprint for verdict in verdicts if verdict.system_fingerprint}
    if len(prints) > 1:
        found.append(f"the endpoint reported {len(prints)} system fingerprints: its judge may have changed")
    guessed = sum(verdict.usage_estimated for verdict in verdicts)
    if guessed:
        found.append(
            f"{guessed} replies say no number of tokens; their cost is the most that they can have cost"
        )
    return found


def games(verdicts: Iterable[JudgeVerdict]) -> list[Game]:
    """Return the verdicts on two answers as games."""
    return [
        Game(
            judge=verdict.judge,
            prompt=verdict.prompt,
            item=f"{verdict.prompt} turn {verdict.turn}",
            a=verdict.a,
            b=verdict.b,
            first=verdict.first,
            score=verdict.value,
            length_a=verdict.length_a,
            length_b=verdict.length_b,
        )
        for verdict in verdicts
        if verdict.b is not None
    ]


def ratings(verdicts: Iterable[JudgeVerdict]) -> list[Rating]:
    """Return the verdicts on one answer as ratings."""
    return [
        Rating(
            model=verdict.a,
            judge=verdict.judge,
            question=verdict.prompt,
            category=verdict.category,
            turn=verdict.turn,
            score=verdict.value,
            text=verdict.text,
        )
        for verdict in verdicts
        if verdict.b is None
    ]


def preferences(verdicts: Iterable[JudgeVerdict]) -> list[Preference]:
    """Return alpaca_eval's preference of each prompt: 1 plus the mean score of b over the orders asked.

    None where an order has no verdict.
    """
    groups: dict[tuple[str, str, str, str], list[JudgeVerdict]] = {}
    for verdict in verdicts:
        if verdict.b is not None:
            groups.setdefault((verdict.judge, verdict.a, verdict.b, verdict.prompt), []).append(verdict)
    return [_preference(group) for group in groups.values()]


def _preference(group: Sequence[JudgeVerdict]) -> Preference:
    head = group[0]
    orders = {
        order: [verdict.value for verdict in group if verdict.first == order and verdict.value is not None]
        for order in dict.fromkeys(verdict.first for verdict in group)
    }
    means = [math.fsum(values) / len(values) for values in orders.values() if values]
    value = 1.0 + math.fsum(means) / len(means) if len(means) == len(orders) else None
    row = {
        "preference": value,
        "generator_1": head.a,
        "generator_2": head.b,
        "annotator": head.judge,
        # Of the answers only the lengths are stored, and only they are used.
        "output_1": "x" * head.length_a,
        "output_2": "x" * (head.length_b or 0),
    }
    return Preference(
        model=head.b or "",
        baseline=head.a,
        judge=head.judge,
        prompt=head.prompt,
        value=value,
        length=head.length_b,
        length_baseline=head.length_a,
        row=row,
    )
