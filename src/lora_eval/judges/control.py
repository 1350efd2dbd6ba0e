"""Base against itself before a judge: its answers and its second answers, which nobody can tell apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lora_eval.errors import ControlFailed
from lora_eval.judges.answers import AnswerSet
from lora_eval.judges.calls import Plan, make_plan, numbered
from lora_eval.judges.games import items_of, pair_rates
from lora_eval.judges.mt_bench import Question
from lora_eval.judges.own_rows import games, last_replies
from lora_eval.judges.trust import sign_test
from lora_eval.records import JudgeSuite, JudgeVerdict
from lora_eval.stats import paired_scores

FEWEST = 16
_SHARE = 10  # one question in so many
_ALARM = 0.001


def control_questions(asked: Mapping[str, Question], count: int | None) -> dict[str, Question]:
    """Return `count` of the questions, spread evenly (None: a tenth of them, at least 16)."""
    keys = list(asked)
    wanted = max(FEWEST, len(keys) // _SHARE) if count is None else count
    wanted = min(wanted, len(keys))
    return {key: asked[key] for number in range(wanted) for key in [keys[number * len(keys) // wanted]]}


def with_control(plan: Plan, suite: JudgeSuite, base: AnswerSet, again: AnswerSet) -> Plan:
    """Return the plan with the calls that judge the base against its second answers."""
    own = {key: base.answers[key] for key in again.answers}
    questions = {key: base.questions[key] for key in again.answers}
    more = make_plan(suite, plan.profile, [replace(base, answers=own, questions=questions), again])
    # The base's own ratings are in the plan already.
    own_calls = (call for call in more.calls if again.arm in (call.a, call.b))
    return replace(plan, calls=numbered([*plan.calls, *own_calls]))


def is_control(verdict: JudgeVerdict, again: str) -> bool:
    """Whether the verdict is on the base's second answers, whose arm is `again`."""
    return again in (verdict.a, verdict.b)


def control_result(verdicts: Sequence[JudgeVerdict], again: str, level: float = 0.95) -> dict[str, Any]:
    """Return what the judge makes of two answers of one model: prompts, the mean difference (of preferences
    from 1/2, or of scores) with its interval, and the p-value of a sign test over prompts, which is exact:
    the two answers are draws from one distribution. `passed` is None where too few prompts differ to fail.

    Raises:
        ControlFailed: the p-value is below 0.001; then no difference between arms is the adapter's alone.
    """
    replies = last_replies(verdicts)
    control = [verdict for verdict in replies if is_control(verdict, again)]
    if any(verdict.b is not None for verdict in control):
        values, more = _preferences(control, level)
    else:
        values, more = _scores(replies, again), {}
    prompts = [prompt for prompt, _ in values]
    found = paired_scores(np.zeros(len(values)), np.asarray([v for _, v in values]), prompts, level)
    p_value, decided = _signs(values)
    able = 2.0 ** (1 - decided) < _ALARM
    result = {
        "prompts": len(set(prompts)), "difference": found.difference, "ci_low": found.ci_low,
        "ci_high": found.ci_high, "level": level, "p_value": p_value, **more,
        "passed": p_value >= _ALARM if able else None,
    }  # fmt: skip
    if result["passed"] is False:
        raise ControlFailed(
            f"control 'judge': on {decided} prompts the judge tells the base's answers from second answers "
            f"of the base (mean difference {found.difference:+.3f}, p = {p_value:.1g}); differences between "
            "arms would not be the adapter's"
        )
    return result


def _preferences(
    control: Sequence[JudgeVerdict], level: float
) -> tuple[list[tuple[str, float]], dict[str, Any]]:
    played = games(control)
    (rate,) = pair_rates(played, level)
    values = [(item.prompt, item.score - 0.5) for item in items_of(played) if item.score is not None]
    return values, {"order_agreement": rate.order_agreement, "position_rate": rate.position_rate}


def _scores(replies: Sequence[JudgeVerdict], again: str) -> list[tuple[str, float]]:
    """Second score minus first, for each turn of the base that has both."""
    second = {(v.prompt, v.turn): v.value for v in replies if v.a == again}
    base = again.rpartition("#")[0]
    first = {(v.prompt, v.turn): v.value for v in replies if v.a == base}
    return [
        (place[0], value - earlier)
        for place, value in second.items()
        if value is not None and (earlier := first.get(place)) is not None
    ]


def _signs(values: Sequence[tuple[str, float]]) -> tuple[float, int]:
    """The two-sided p-value, and how many prompts differ at all."""
    by_prompt: dict[str, list[float]] = {}
    for prompt, value in values:
        by_prompt.setdefault(prompt, []).append(value)
    sums = [math.fsum(found) for found in by_prompt.values()]
    higher, lower = sum(total > 0 for total in sums), sum(total < 0 for total in sums)
    return min(1.0, 2.0 * sign_test(max(higher, lower), higher + lower)), higher + lower
