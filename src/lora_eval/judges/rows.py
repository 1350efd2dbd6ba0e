"""A judge's verdicts as the rows of runs, so that they are compared, gated and reported as any task is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

from lora_eval.judges.answers import AnswerSet
from lora_eval.judges.calls import Plan
from lora_eval.judges.own_rows import last_replies
from lora_eval.records import JudgeVerdict, SampleRow, TaskResult

FILTER = "judge"
_EVEN = 0.5  # the base's preference over itself


def metric_of(plan: Plan) -> str:
    """Return the metric's name: `score` (1 to 10) of one answer, or `preference` (0 to 1) over the base's."""
    return "score" if plan.profile.mode == "single" else "preference"


def judged_rows(
    plan: Plan, verdicts: Sequence[JudgeVerdict], sets: Sequence[AnswerSet]
) -> dict[str, list[SampleRow]]:
    """Return each arm's rows: one for each prompt's turn, the prompt being the cluster.

    A preference is the mean over both orders of how often the judge takes the arm's answer rather than the
    base's; the base's own is 1/2, so that a difference from the base is the rate above 50 %. Where an order
    has no verdict there is no value. Between two tuned arms the difference is one of rates over the base.
    """
    metric, base = metric_of(plan), sets[0].arm
    places = dict.fromkeys((call.prompt, call.turn) for call in plan.calls)
    items = {place: number for number, place in enumerate(places)}
    values = _values(plan, last_replies(verdicts))
    rows: dict[str, list[SampleRow]] = {}
    for answers in sets:
        own = rows.setdefault(answers.arm, [])
        for (prompt, turn), number in items.items():
            if metric == "preference" and answers.arm == base:
                value: float | None = _EVEN
            else:
                value = values.get((answers.arm, prompt, turn))
            own.append(_row(plan, answers, prompt, turn, number, metric, value))
    return rows


def judged_result(plan: Plan, rows: Sequence[SampleRow]) -> TaskResult:
    """Return the arm's mean over the rows that have a value; None where none has."""
    metric = metric_of(plan)
    known = [value for row in rows if (value := row.metrics[metric]) is not None]
    return TaskResult(
        task=rows[0].task,
        metric=metric,
        filter=FILTER,
        higher_is_better=True,
        value=math.fsum(known) / len(known) if known else None,
        n=len(known),
    )


def _values(plan: Plan, replies: Sequence[JudgeVerdict]) -> dict[tuple[str, str, int], float | None]:
    """The value of each (arm, prompt, turn): the mean over orders of the mean over repeats."""
    found: dict[tuple[str, str, int], dict[str, list[float | None]]] = {}
    for verdict in replies:
        arm = verdict.a if verdict.b is None else verdict.b
        orders = found.setdefault((arm, verdict.prompt, verdict.turn), {})
        orders.setdefault(verdict.first, []).append(verdict.value)
    asked = {call.first for call in plan.calls}
    return {place: _mean_of_orders(orders, len(asked)) for place, orders in found.items()}


def _mean_of_orders(orders: Mapping[str, Sequence[float | None]], asked: int) -> float | None:
    means = []
    for values in orders.values():
        known = [value for value in values if value is not None]
        if known:
            means.append(math.fsum(known) / len(known))
    return math.fsum(means) / len(means) if len(means) == asked else None


def _row(
    plan: Plan, answers: AnswerSet, prompt: str, turn: int, number: int, metric: str, value: float | None
) -> SampleRow:
    asked = "\n\n".join(answers.questions[prompt].turns[:turn])
    digest = hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()
    return SampleRow(
        task=plan.calls[0].suite,
        item_id=number,
        doc_hash=f"{prompt} turn {turn}",
        filter=FILTER,
        repeat=0,
        prompt_sha256=digest,
        prompt=asked,
        target="",
        output=answers.answers[prompt][turn - 1],
        metrics={metric: value},
        cluster=prompt,
        reason=None if value is not None else "the judge gave no verdict, or in one order only",
    )
