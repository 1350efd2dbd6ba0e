"""Is the judge any good? Pairs whose better answer is known: judged in both orders, or each answer rated."""

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
from lora_eval.records import Calibration, JudgeProfile, JudgeSuite, JudgeVerdict
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
    """Return the calls: both orders of every pair, or a rating of each answer; a tenth of them once more."""
    keys = [
        f"{number:05d}-{hashlib.sha256(pair[0].encode()).hexdigest()[:8]}"
        for number, pair in enumerate(pairs)
    ]
    asked = {key: Question(key, "", (pair[0],)) for key, pair in zip(keys, pairs, strict=True)}
    sets = [
        AnswerSet(arm, Path(), {key: (pair[place],) for key, pair in zip(keys, pairs, strict=True)}, asked)
        for arm, place in ((_WORSE, 2), (_BETTER, 1))
    ]
    suite: JudgeSuite = "mt-bench" if profile.mode == "single" else "pairwise"
    once = make_plan(suite, profile, sets)
    again = make_plan(suite, profile, sets, repeats=2)
    drawn = {call.prompt for call in once.calls if int(call.prompt[:5]) % REPEATED == 0}
    repeated = [call for call in again.calls if call.repeat == 1 and call.prompt in drawn]
    return Plan(profile, once.judge, numbered([*once.calls, *repeated]))


def calibrate(plan: Plan, verdicts: Sequence[JudgeVerdict], level: float = 0.95) -> Calibration:
    """Return what the verdicts on labelled pairs say of the judge."""
    replies = last_replies(verdicts)
    once = [verdict for verdict in replies if verdict.repeat == 0]
    orders = position = None
    if plan.profile.mode == "pair":
        (rate,) = pair_rates(games(once), level)
        orders, position = rate.order_agreement, rate.position_rate
    scores = _scores(once)
    known = [score for score in scores if score is not None]
    right = [1.0 if score > 0.5 else 0.0 if score < 0.5 else 0.5 for score in known]
    chance = paired_scores(np.full(len(right), 0.5), np.asarray(right), level=level)
    agreement = float(np.mean(right)) if right else None
    same, repeats = _repeats(replies)
    reasons = _reasons(agreement, orders, position)
    return Calibration(
        judge=plan.judge,
        n=len(right),
        n_invalid=len(scores) - len(right),
        agreement=agreement,
        ci_low=None if chance.ci_low is None else max(0.0, 0.5 + chance.ci_low),
        ci_high=None if chance.ci_high is None else min(1.0, 0.5 + chance.ci_high),
        level=level,
        order_agreement=orders,
        position_rate=position,
        repeat_agreement=same / repeats if repeats else None,
        repeats=repeats,
        passed=not reasons,
        reasons=tuple(reasons),
    )


def _scores(once: Sequence[JudgeVerdict]) -> list[float | None]:
    """The mean score of the better answer on each pair, None where a verdict or rating is missing."""
    by_prompt: dict[str, list[JudgeVerdict]] = {}
    for verdict in once:
        by_prompt.setdefault(verdict.prompt, []).append(verdict)
    return [_score(own) for own in by_prompt.values()]


def _score(own: Sequence[JudgeVerdict]) -> float | None:
    known = {(verdict.a, verdict.first): verdict.value for verdict in own if verdict.value is not None}
    if len(known) < len(own):
        return None
    if own[0].b is not None:
        return sum(known.values()) / len(known)
    worse, better = known[_WORSE, "a"], known[_BETTER, "a"]
    return (1.0 + (better > worse) - (better < worse)) / 2.0


def _repeats(replies: Sequence[JudgeVerdict]) -> tuple[int, int]:
    """How many of the calls asked twice got the same verdict, and how many there are."""
    first, again = (
        {(v.prompt, v.a, v.first): _said(v) for v in replies if v.repeat == repeat} for repeat in (0, 1)
    )
    both = [(first.get(place), value) for place, value in again.items()]
    decided = [(a, b) for a, b in both if a is not None and b is not None]
    return sum(a == b for a, b in decided), len(decided)


def _said(verdict: JudgeVerdict) -> float | None:
    """The rating, or which answer is better: probabilities of one side are one verdict."""
    if verdict.value is None or verdict.b is None:
        return verdict.value
    return float((verdict.value > 0.5) - (verdict.value < 0.5))


def _reasons(agreement: float | None, orders: float | None, position: float | None) -> list[str]:
    if agreement is None:
        return ["no pair has all of its verdicts"]
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
