"""Does each name answer with its own weights: not with the base, not with another adapter?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from lora_eval.engines.http_client import Refused
from lora_eval.engines.http_requests import (
    COMPLETIONS,
    ECHO,
    PROMPT_LOGPROBS,
    Answer,
    Unread,
    listed_entry,
    read_answer,
    read_rows,
    read_score,
    score_body,
    unknown_name,
)
from lora_eval.engines.vllm_probe import Expected, Step, Tolerance, judge_scores
from lora_eval.smoke.local import LocalArm
from lora_eval.smoke.served import Outcome, Served, bodies_of

_ENDED = -1  # in place of a token: the answer has ended


@dataclass(frozen=True, slots=True)
class Distance:
    """How far answers are from an arm's. `differences` of log-probabilities in nats, up to the first other
    token of each answer; `parted` says where a token is another although the likeliest led clearly.
    """

    differences: tuple[float, ...]
    equal: int
    parted: tuple[str, ...]
    away: float


def distance(told: Sequence[Answer], expected: Expected, tolerance: Tolerance, tokenizer: Any) -> Distance:
    """Compare answers with an arm's, token by token. `away` is the mean over tokens of the differences, where
    a token that is another one counts with the nats by which the right one led.
    """
    differences: list[float] = []
    costs: list[float] = []
    parted: list[str] = []
    equal = 0
    for number, (answer, steps) in enumerate(zip(told, expected.answers, strict=True)):
        ids = _ids(answer, steps, tokenizer)
        found = [_place(ids, answer, place) for place in range(len(steps))]
        other = next((place for place, step in enumerate(steps) if found[place][0] != step.token), None)
        equal += other is None
        for (_, value), step in zip(found[:other], steps, strict=False):
            costs.append(0.0 if value is None else abs(value - step.log_probability))
            differences += [] if value is None else [costs[-1]]
        if other is not None:
            costs.append(steps[other].lead)
            if steps[other].lead > 2 * tolerance.largest:
                parted.append(_parted(number, other, found[other][0], steps[other]))
    return Distance(tuple(differences), equal, tuple(parted), fmean(costs) if costs else 0.0)


def _ids(answer: Answer, steps: Sequence[Step], tokenizer: Any) -> tuple[int, ...]:
    """The answer's ids. Where the server names none, an equal text stands for equal tokens: not every list of
    tokens comes back from its text.
    """
    wanted = tuple(step.token for step in steps)
    if answer.token_ids is None and answer.text == tokenizer.decode(list(wanted)):
        return wanted
    return answer.ids(tokenizer)


def _place(ids: Sequence[int], answer: Answer, place: int) -> tuple[int, float | None]:
    token = ids[place] if place < len(ids) else _ENDED
    values = answer.log_probabilities
    return token, values[place] if len(values) == len(ids) and place < len(values) else None


def _parted(number: int, place: int, token: int, step: Step) -> str:
    found = "is missing" if token == _ENDED else f"is {token}"
    return (
        f"token {place} of answer {number} {found}, here it is {step.token}, leading by {step.lead:.3g} nats"
    )


def of_answers(told: Sequence[Answer], tokenizer: Any) -> Expected:
    """The server's own answers as an expectation: leads are its own, and 0 where it tells none."""
    return Expected((), tuple(_steps(answer, answer.ids(tokenizer)) for answer in told))


def _steps(answer: Answer, ids: Sequence[int]) -> tuple[Step, ...]:
    values, leads = answer.log_probabilities, answer.leads
    values = values if len(values) == len(ids) else (0.0,) * len(ids)
    leads = leads if len(leads) == len(ids) else (0.0,) * len(ids)
    return tuple(Step(*each) for each in zip(ids, values, leads, strict=True))


def check_listed(served: Served, arm: LocalArm) -> Outcome:
    """The server lists the name."""
    if served.models is None:
        return None, "the server does not list its models"
    entry = listed_entry(served.models, arm.name)
    if entry is not None:
        root = entry.get("root")
        return True, f"listed, from {root}" if root else "listed"
    return False, f"not listed; the server has {', '.join(served.models) or 'no model'}"


def check_unknown(served: Served, arm: LocalArm) -> Outcome:
    """A name that the server does not have is refused: else a wrong name is answered with the base."""
    name = unknown_name(served.models or {}, arm.name)
    body = bodies_of(name, arm.probe.generations[:1])[0]
    try:
        served.client.post(COMPLETIONS, body)
    except Refused as error:
        return True, f"a model '{name}' is refused ({error.status})"
    return False, f"the server answers for '{name}': names are not looked at"


def check_not_another(served: Served, arm: LocalArm, other: str) -> Outcome:
    """The answers are not those of the base, or of another adapter."""
    own = arm.others[arm.name]
    theirs = arm.others[other]
    apart = distance(_as_answers(own), theirs, arm.tolerance, arm.tokenizer).away
    if apart <= arm.tolerance.mean:
        return None, (
            f"cannot be told: here too it differs from {other} by only {apart:.2g} nats, no more than "
            f"rounding ({arm.tolerance.mean:g})"
        )
    told = served.answers(arm.name, arm.probe.generations)
    to_own = distance(told, own, arm.tolerance, arm.tokenizer).away
    to_other = distance(told, theirs, arm.tolerance, arm.tokenizer).away
    said = f"{to_own:.3g} nats from its own weights, {to_other:.3g} from {other}'s"
    return to_own <= to_other, said if to_own <= to_other else f"the answers are {other}'s: {said}"


def _as_answers(expected: Expected) -> list[Answer]:
    return [
        Answer("", tuple(s.token for s in steps), None, tuple(s.log_probability for s in steps))
        for steps in expected.answers
    ]


def check_greedy(served: Served, arm: LocalArm) -> Outcome:
    """Greedy answers are the local ones; they may part only where the two likeliest tokens are level."""
    found = distance(
        served.answers(arm.name, arm.probe.generations), arm.expected, arm.tolerance, arm.tokenizer
    )
    count = len(arm.expected.answers)
    if found.parted:
        return False, f"{len(found.parted)} of {count} answers differ: {found.parted[0]}"
    level = f", {count - found.equal} parted where two tokens are level" if found.equal < count else ""
    return True, f"{found.equal} of {count} answers equal{level}"


def check_values(served: Served, arm: LocalArm) -> Outcome:
    """The log-probabilities of the answers' tokens are the local ones, within rounding."""
    told = served.answers(arm.name, arm.probe.generations)
    if not any(answer.log_probabilities for answer in told):
        return None, "the server gives no log-probabilities"
    found = distance(told, arm.expected, arm.tolerance, arm.tokenizer).differences
    if not found:
        return False, "no token could be compared: every answer begins with another one"
    return within(found, arm.tolerance)


def within(differences: Sequence[float], tolerance: Tolerance) -> Outcome:
    """Whether differences of log-probabilities are rounding. NaN is not."""
    mean, largest = fmean(differences), max(differences, key=lambda x: (x != x, x))
    passed = mean <= tolerance.mean and largest <= tolerance.largest
    return passed, (
        f"differ by {mean:.2g} nats in the mean and {largest:.2g} at most over {len(differences)} tokens "
        f"(rounding allows {tolerance.mean:.2g} and {tolerance.largest:.2g})"
    )


def check_prompt_values(served: Served, arm: LocalArm) -> Outcome:
    """The log-probabilities of prompts are the local ones: what log-likelihood benchmarks read. Asked one at
    a time, because some servers end at several.
    """
    missing = ""
    for mode in (PROMPT_LOGPROBS, ECHO):
        scores = []
        try:
            for request in arm.probe.scores:
                ids = request.context_ids + request.continuation_ids
                reply = served.client.post(COMPLETIONS, score_body(arm.name, ids, mode))
                scores.append(read_score(read_rows(reply, ids, mode), request))
        except (Unread, Refused) as error:
            missing = missing or str(error)
            continue
        verdict = judge_scores(scores, arm.name, arm.others, arm.tolerance)
        return not verdict.reason, verdict.reason or (
            f"differ by {verdict.mean:.2g} nats in the mean and {verdict.largest:.2g} at most over "
            f"{verdict.n} tokens (through {mode})"
        )
    return None, f"not offered: {missing}"


def check_streaming(served: Served, arm: LocalArm) -> Outcome:
    """A streamed answer is the local one too: some servers leave the adapter out there."""
    request = min(arm.probe.generations, key=lambda r: len(r.input_ids))
    steps = arm.expected.answers[arm.probe.generations.index(request)]
    body = bodies_of(arm.name, [request], stream=True)[0]
    told = read_stream(served.client.tell(COMPLETIONS, body))
    found = distance([told], Expected((), (steps,)), arm.tolerance, arm.tokenizer)
    if found.parted:
        return False, f"the streamed answer differs: {found.parted[0]}"
    return True, f"the streamed answer is the local one ({len(steps)} tokens)"


def read_stream(text: str) -> Answer:
    """Return the answer of a streamed completion, put together.

    Raises:
        Unread: it is no stream of events.
    """
    parts: list[Answer] = []
    for line in text.splitlines():
        if line.startswith("data:") and line[5:].strip() != "[DONE]":
            try:
                reply = json.loads(line[5:])
            except ValueError as error:
                raise Unread(f"the stream holds what is no JSON: {line[:80]}") from error
            if reply.get("choices"):  # usage comes without one
                parts.append(read_answer(reply))
    if not parts:
        raise Unread("the server streams nothing")
    named = [part.token_ids for part in parts if part.text or part.token_ids]
    ids = None if None in named else tuple(token for ids in named for token in ids or ())
    values = tuple(value for part in parts for value in part.log_probabilities)
    return Answer("".join(part.text for part in parts), ids, parts[-1].finish_reason, values)
