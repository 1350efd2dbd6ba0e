"""Is the judge any good? Pairs whose better answer is known, judged in both orders, some of them twice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lora_eval.judges.answers import AnswerSet
from lora_eval.judges.calls import Plan, make_plan, numbered
from lora_eval.judges.files import PlacedRow, Problems, clean_text, parse_rows
from lora_eval.judges.games import pair_rates
from lora_eval.judges.mt_bench import Question
from lora_eval.judges.own_rows import games, last_replies
from lora_eval.records import Calibration, JudgeProfile, JudgeVerdict
from lora_eval.stats import paired_scores

REPEATED = 10  # one call in so many is asked twice
_BETTER, _WORSE = "better", "worse"
Pair = tuple[str, str, str]  # question, better answer, worse answer


def read_pairs(paths: Sequence[Path]) -> list[Pair]:
    """Return labelled pairs: rows {prompt, chosen, rejected}, or {question, answer_a, answer_b, label: a|b}.

    Raises:
        InputError: with every fault of all files.
    """
    return parse_rows(paths, _parse, lambda keys: "")


def calibration_plan(profile: JudgeProfile, pairs: Sequence[Pair]) -> Plan:
    """Return the calls: both orders of every pair, and a tenth of them once more."""
    keys = [
        f"{number:05d}-{hashlib.sha256(pair[0].encode()).hexdigest()[:8]}"
        for number, pair in enumerate(pairs)
    ]
    asked = {key: Question(key, "", (pair[0],)) for key, pair in zip(keys, pairs, strict=True)}
    sets = [
        AnswerSet(arm, Path(), {key: (pair[place],) for key, pair in zip(keys, pairs, strict=True)}, asked)
        for arm, place in ((_WORSE, 2), (_BETTER, 1))
    ]
    once = make_plan("pairwise", profile, sets)
    again = make_plan("pairwise", profile, sets, repeats=2)
    drawn = {call.prompt for call in once.calls if int(call.prompt[:5]) % REPEATED == 0}
    repeated = [call for call in again.calls if call.repeat == 1 and call.prompt in drawn]
    return Plan(profile, once.judge, numbered([*once.calls, *repeated]))


def calibrate(plan: Plan, verdicts: Sequence[JudgeVerdict], level: float = 0.95) -> Calibration:
    """Return what the verdicts on labelled pairs say of the judge."""
    replies = last_replies(verdicts)
    (rate,) = pair_rates(games([verdict for verdict in replies if verdict.repeat == 0]), level)
    right = [1.0 if score > 0.5 else 0.0 if score < 0.5 else 0.5 for score in _scores(replies)]
    chance = paired_scores(np.full(len(right), 0.5), np.asarray(right), level=level)
    agreement = float(np.mean(right)) if right else None
    same, repeats = _repeats(replies)
    reasons = _reasons(agreement, rate.order_agreement, rate.position_rate)
    return Calibration(
        judge=plan.judge,
        n=rate.n,
        n_invalid=rate.n_invalid,
        agreement=agreement,
        ci_low=None if chance.ci_low is None else max(0.0, 0.5 + chance.ci_low),
        ci_high=None if chance.ci_high is None else min(1.0, 0.5 + chance.ci_high),
        level=level,
        order_agreement=rate.order_agreement,
        position_rate=rate.position_rate,
        repeat_agreement=same / repeats if repeats else None,
        repeats=repeats,
        passed=not reasons,
        reasons=tuple(reasons),
    )


def _scores(replies: Sequence[JudgeVerdict]) -> list[float]:
    """The mean score of the better answer on each pair that has a verdict in both orders."""
    by_prompt: dict[str, list[float | None]] = {}
    for verdict in replies:
        if verdict.repeat == 0:
            by_prompt.setdefault(verdict.prompt, []).append(verdict.value)
    found = []
    for values in by_prompt.values():
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            found.append(sum(known) / len(known))
    return found


def _repeats(replies: Sequence[JudgeVerdict]) -> tuple[int, int]:
    """How many of the calls asked twice got the same verdict, and how many there are."""
    first = {(v.prompt, v.first): v.value for v in replies if v.repeat == 0}
    again = {(v.prompt, v.first): v.value for v in replies if v.repeat == 1}
    both = [(first.get(place), value) for place, value in again.items()]
    decided = [(a, b) for a, b in both if a is not None and b is not None]
    return sum((a > 0.5) - (a < 0.5) == (b > 0.5) - (b < 0.5) for a, b in decided), len(decided)


def _reasons(agreement: float | None, orders: float | None, position: float | None) -> list[str]:
    if agreement is None:
        return ["no pair has a verdict in both orders"]
    reasons = []
    if agreement <= 0.5:
        reasons.append(f"right on {100 * agreement:.1f} % of the pairs: no better than a coin")
    if orders is not None and orders < 0.5:
        shown = "" if position is None else f"; the answer shown first wins {100 * position:.0f} %"
        reasons.append(f"the same verdict in both orders for {100 * orders:.1f} % of the pairs only{shown}")
    return reasons


def _parse(row: PlacedRow, problems: Problems) -> Pair | None:
    question = _text(row, ("prompt", "question", "instruction"), problems)
    if "chosen" in row.values:
        better = _text(row, ("chosen",), problems)
        worse = _text(row, ("rejected",), problems)
    else:
        a, b = _text(row, ("answer_a",), problems), _text(row, ("answer_b",), problems)
        label = row.values.get("label")
        if label not in ("a", "b"):
            problems.add(row.path, row.place, f"label: expected a or b, got {label!r}")
            return None
        better, worse = (a, b) if label == "a" else (b, a)
    if question is None or better is None or worse is None:
        return None
    return question, better, worse


def _text(row: PlacedRow, names: Sequence[str], problems: Problems) -> str | None:
    """The first of the keys that is there: text, or messages whose texts are joined."""
    name = next((name for name in names if name in row.values), None)
    if name is None:
        problems.add(row.path, row.place, f"missing key '{names[0]}'")
        return None
    value = row.values[name]
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list) and all(
        isinstance(m, dict) and isinstance(m.get("content"), str) for m in value
    ):
        turns = [m for m in value if m.get("role") != "user"] if name in ("chosen", "rejected") else value
        return clean_text("\n\n".join(turn["content"] for turn in turns))
    problems.add(row.path, row.place, f"{name}: expected text or messages, got {type(value).__name__}")
    return None
