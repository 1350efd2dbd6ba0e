"""What a plan would ask, cost and be able to find, without any network."""

from __future__ import annotations

import math
from pathlib import Path

from lora_eval.judges.budget import cost, likely_input_tokens, most_cost, most_input_tokens
from lora_eval.judges.calls import Plan
from lora_eval.judges.own_rows import last_replies
from lora_eval.judges.store import FILE, read_verdicts
from lora_eval.records import JudgeForecast
from lora_eval.stats import normal_mde

# Variance of one prompt's score where both orders agree with probability c and no arm is better: c / 4.
ORDER_AGREEMENT = 0.7
# Standard deviation of one question's difference of scores (both turns averaged), points of 10: that of eight
# real pairs of models is 1.39 to 2.72 (standard errors of 0.155 to 0.304 over 80 questions).
RATING_SPREAD = 2.0


def forecast(plan: Plan, folder: Path | None, level: float = 0.95) -> JudgeForecast:
    """Return what `judge run` with this plan would ask of the endpoint, those in `folder` not again.

    Raises:
        RecordError: the verdicts in `folder` cannot be read.
    """
    known = set()
    if folder is not None and (folder / FILE).is_file():
        known = {verdict.key for verdict in last_replies(read_verdicts(folder))}
    profile = plan.profile
    asked = [call for call in plan.calls if call.messages is not None]
    bodies = [plan.body(call) for call in asked]
    left = [
        body
        for call, body in zip(asked, bodies, strict=True)
        if not any(call.key(profile.base_url or "", body, attempt) in known for attempt in range(3))
    ]
    units = len({call.prompt for call in plan.calls})
    pair = profile.mode == "pair"
    spread = math.sqrt(ORDER_AGREEMENT / 4.0) if pair else RATING_SPREAD
    priced = profile.price is not None
    return JudgeForecast(
        judge=plan.judge,
        calls=len(asked),
        equal_answers=len(plan.calls) - len(asked),
        known=len(asked) - len(left),
        left=len(left),
        input_tokens=sum(likely_input_tokens(body) for body in left),
        most_input_tokens=sum(most_input_tokens(body) for body in left),
        most_output_tokens=len(left) * profile.params.max_tokens,
        likely_dollars=sum(
            cost(profile.price, likely_input_tokens(body), _likely_output(plan)) for body in left
        )
        if priced
        else None,
        most_dollars=sum(most_cost(profile, body) for body in left) if priced else None,
        prompts=units,
        smallest_difference=normal_mde(spread / math.sqrt(units), level) if units else None,
        unit="share of prompts" if pair else "points of 10",
        assumption=f"both orders agree on {100 * ORDER_AGREEMENT:.0f} % of the prompts"
        if pair
        else f"a question's difference spreads by {RATING_SPREAD:g} points",
        level=level,
    )


def _likely_output(plan: Plan) -> float:
    """Explanations are about 190 tokens (800 real judgments of MT-Bench), other verdicts what is allowed."""
    allowed = plan.profile.params.max_tokens
    return min(190, allowed) if plan.profile.verdict == "text" else min(50, allowed)
