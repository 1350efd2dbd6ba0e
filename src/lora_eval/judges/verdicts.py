"""From a reply to the verdict that is stored, and back: which calls of a plan are answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lora_eval.judges.calls import ASKS, Call, Plan
from lora_eval.judges.profiles import LOCAL
from lora_eval.records import JudgedItem, JudgeProfile, JudgeReply, JudgeVerdict

# What the judge would say of equal answers.
EQUAL = JudgeReply(value=0.5, input_tokens=0, output_tokens=0)


def asks(profile: JudgeProfile) -> int:
    """Return how often a call is asked for a verdict; a model of this machine would say the same again."""
    return 1 if profile.base_url == LOCAL else ASKS


def stored(plan: Plan, call: Call, known: Mapping[str, JudgeVerdict]) -> Iterator[JudgeVerdict]:
    """Yield the stored verdicts of one call: one for each time it was asked."""
    for attempt in range(asks(plan.profile)):
        verdict = known.get(key_of(plan, call, attempt))
        if verdict is None:
            return
        yield verdict
        if verdict.value is not None:
            return


def is_known(plan: Plan, call: Call, known: Mapping[str, JudgeVerdict]) -> bool:
    """Return whether nothing is left to ask of this call."""
    found = list(stored(plan, call, known))
    return bool(found) and (found[-1].value is not None or len(found) == asks(plan.profile))


def key_of(plan: Plan, call: Call, attempt: int) -> str:
    """Return the key of one time of asking."""
    body = {} if call.messages is None else plan.body(call)
    return call.key(plan.profile.base_url or "", body, attempt)


def verdict_of(
    plan: Plan,
    call: Call,
    key: str,
    attempt: int,
    reply: JudgeReply,
    *,
    tries: int = 0,
    seconds: float = 0.0,
    dollars: float = 0.0,
    guessed: bool = False,
) -> JudgeVerdict:
    """Return what is stored of a reply."""
    value = reply.value
    if value is not None and call.b is not None and call.first == "b":
        value = 1.0 - value  # the reply scores the answer shown second; the record scores b
    judged = {name: getattr(call, name) for name in JudgedItem.model_fields}
    said = dict(reply) | {"value": value}
    return JudgeVerdict(
        **judged,
        **said,
        key=key,
        profile=plan.profile.name,
        attempt=attempt,
        usage_estimated=guessed,
        cost=dollars,
        seconds=round(seconds, 4),
        tries=tries,
    )
