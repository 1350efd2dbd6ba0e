"""A comparison's figures against each other: what follows from its counts and variances, without any rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from lora_eval.errors import ControlFailed
from lora_eval.publish.finding import Finding, same
from lora_eval.publish.records import EVALUATION
from lora_eval.records import Comparison, Gate, Pair, Run, TaskComparison
from lora_eval.stats.binary import mcnemar_exact
from lora_eval.stats.gate import judge_gate
from lora_eval.stats.laws import law_of
from lora_eval.stats.multiple import holm
from lora_eval.stats.score_interval import margin_interval

_PLACE = f"{EVALUATION}/comparison.json"
_ROUNDING = 1e-6  # of roots that are found by search


def figure_findings(comparison: Comparison, headers: Mapping[str, Run]) -> Iterator[Finding]:
    """Yield every figure that contradicts the others, and means that the runs' headers do not have."""
    for task in comparison.tasks:
        yield from _means(task, headers)
        for pair in task.pairs:
            place = f"{_PLACE}, {task.task} {task.metric}, {pair.b} against {pair.a}"
            yield from _counts(place, task, pair)
            yield from _interval(place, task, pair)
            yield from _verdict(place, task, pair)
    yield from _adjusted(comparison)
    yield from _gate(comparison)


def recomputed_findings(stored: Comparison, again: Comparison) -> Iterator[Finding]:
    """Yield every figure of the tasks that differs from the one made again from the published rows. What the
    record leaves open claims nothing: an older lora-eval knew fewer figures.
    """
    one, other = (json.loads(c.model_dump_json(include={"tasks", "suite_scores"})) for c in (stored, again))
    for place, claim, follows in _leaves(one, other, _PLACE):
        yield Finding(place, str(claim), f"{follows} (from the published rows)")


def _means(task: TaskComparison, headers: Mapping[str, Run]) -> Iterator[Finding]:
    """Against lm-eval's own figures, as each run's header has them."""
    for arm, mean in task.means.items():
        for result in headers[arm].results if arm in headers else ():
            if (result.task, result.metric, result.filter) != (task.task, task.metric, task.filter):
                continue
            if not same(result.value, mean):
                yield Finding(
                    f"{_PLACE}, {task.task} {task.metric}, mean of {arm}",
                    str(mean),
                    f"{result.value} ({EVALUATION}/runs/{arm}/run.json)",
                )


def _counts(place: str, task: TaskComparison, pair: Pair) -> Iterator[Finding]:
    if pair.wins + pair.losses + pair.ties != pair.n:
        counted = f"{pair.wins} + {pair.losses} + {pair.ties}"
        yield Finding(place, f"n {pair.n}", f"{counted} items")
    if "McNemar" in pair.method and pair.n and pair.difference is not None:
        gain = (pair.wins - pair.losses) / pair.n * (1 if task.higher_is_better else -1)
        if not same(gain, pair.difference):
            yield Finding(place, f"difference {pair.difference}", str(gain))
    if pair.method.startswith("exact McNemar") and pair.clusters is None and not pair.looks:
        p_value = mcnemar_exact(pair.wins, pair.losses)
        if not same(p_value, pair.p_value, _ROUNDING):
            yield Finding(place, f"p {pair.p_value}", str(p_value))


def _interval(place: str, task: TaskComparison, pair: Pair) -> Iterator[Finding]:
    low, value, high = pair.ci_low, pair.difference, pair.ci_high
    if low is None or value is None or high is None:
        return
    if not low <= value <= high:
        yield Finding(place, f"difference {value}", f"one within {low} to {high}")
    if pair.looks:
        return  # bounds over all looks together are wider than the last one's
    law = law_of(pair, higher_is_better=task.higher_is_better)
    ends = law.interval(pair.level) if law is not None else (low, high)
    if not all(same(float(one), other, _ROUNDING) for one, other in zip(ends, (low, high), strict=True)):
        yield Finding(place, f"interval {low} to {high}", f"{ends[0]} to {ends[1]}")


def _verdict(place: str, task: TaskComparison, pair: Pair) -> Iterator[Finding]:
    """By the rules of `stats.verdict`, from what the record prints."""
    low, high = pair.ci_low, pair.ci_high
    if not task.primary or low is None or high is None or pair.looks:
        return
    law = law_of(pair, higher_is_better=task.higher_is_better)
    margin = margin_interval(law, pair.level) if law is not None else (low, high)
    gain, bound = (low, high), margin[0]
    if not task.higher_is_better:
        gain, bound = (-high, -low), -margin[1]
    tested = pair.p_adjusted is not None and pair.p_adjusted < 1.0 - pair.level
    safe = pair.margin is not None and bound > -pair.margin
    if tested and (gain[0] > 0 or gain[1] < 0):
        follows = "better" if gain[0] > 0 else "worse"
    else:
        follows = "not_worse" if safe else "inconclusive"
    if follows != pair.verdict:
        yield Finding(place, f"verdict {pair.verdict}", follows)


def _adjusted(comparison: Comparison) -> Iterator[Finding]:
    """Holm's p-values, over the main lines of each pair of arms."""
    lines = [(task, pair) for task in comparison.tasks if task.primary for pair in task.pairs]
    for names in dict.fromkeys((pair.a, pair.b) for _, pair in lines):
        own = [(task, pair) for task, pair in lines if (pair.a, pair.b) == names]
        for (task, pair), follows in zip(own, holm([pair.p_value for _, pair in own]), strict=True):
            if not same(follows, pair.p_adjusted):
                place = f"{_PLACE}, {task.task} {task.metric}, {pair.b} against {pair.a}"
                yield Finding(place, f"p adjusted {pair.p_adjusted}", str(follows))


def _gate(comparison: Comparison) -> Iterator[Finding]:
    stored = comparison.gate
    if stored is None:
        return
    try:
        again = judge_gate(comparison, Gate(level=stored.level, rules=stored.rules), stored.source or "gate")
    except ControlFailed as error:
        yield Finding(f"{_PLACE}, gate", stored.verdict, f"none: {error}")
        return
    for one, other in zip(stored.checks, again.checks, strict=False):
        if one.verdict != other.verdict:
            yield Finding(
                f"{_PLACE}, gate, rules[{one.rule}] on {one.task}, {one.b}", one.verdict, other.verdict
            )
    if (stored.verdict, len(stored.checks)) != (again.verdict, len(again.checks)):
        yield Finding(
            f"{_PLACE}, gate",
            f"{stored.verdict} of {len(stored.checks)} checks",
            f"{again.verdict} of {len(again.checks)}",
        )


def _leaves(one: object, other: object, place: str) -> Iterator[tuple[str, object, object]]:
    if one in (None, [], {}):
        return
    if isinstance(one, dict) and isinstance(other, dict):
        name = next((f" {one[key]}" for key in ("task", "a") if isinstance(one.get(key), str)), "")
        for key in (key for key in one if key != "reason"):  # a sentence, in the words of its version
            yield from _leaves(one[key], other.get(key), f"{place}{name}, {key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for a, b in zip(one, other, strict=True):
            yield from _leaves(a, b, place)
    elif not same(one, other):
        yield place, one, other
