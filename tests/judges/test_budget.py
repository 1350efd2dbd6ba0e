"""Dollars: whatever is in flight, the cap is never passed, and nothing is refused that would fit. Pace: on a
clock of the test's own.
"""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.judges import budget as module
from lora_eval.judges.budget import Budget, Pace, cost, most_cost, most_input_tokens
from lora_eval.judges.profiles import load_profile
from lora_eval.records import JudgePrice

# The most that a call may cost, the part of it that it does cost, and how long it takes.
CALLS = st.lists(
    st.tuples(st.floats(0.01, 1.0), st.floats(0.0, 1.0), st.integers(0, 5)), min_size=1, max_size=40
)


@given(CALLS, st.floats(0.0, 10.0), st.integers(1, 16))
def test_the_cap_holds_in_any_order_of_answers(calls, cap, workers):
    budget, most_at_once, refused = Budget(cap), 0.0, []
    waiting = iter(calls)

    async def work() -> None:
        nonlocal most_at_once
        for most, part, steps in waiting:
            if not await budget.reserve(most):
                refused.append((most, budget.spent))
                return
            most_at_once = max(most_at_once, budget.spent + budget._reserved)
            for _ in range(steps):
                await asyncio.sleep(0)
            budget.settle(most, most * part)

    async def everybody() -> None:
        async with asyncio.timeout(30):
            await asyncio.gather(*(work() for _ in range(workers)))

    asyncio.run(everybody())
    assert budget.spent <= cap * (1 + 1e-9)
    assert most_at_once <= cap * (1 + 1e-9)
    for most, spent in refused:  # only where it might not have fitted even alone
        assert spent + most > cap
    if not refused:
        assert budget.spent == pytest.approx(sum(most * part for most, part, _ in calls))


def test_what_was_spent_before_counts():
    async def asked() -> list[bool]:
        budget = Budget(1.0, spent=0.7)
        return [await budget.reserve(0.2), await Budget(1.0, spent=0.9).reserve(0.2)]

    assert asyncio.run(asked()) == [True, False]


@given(st.text(), st.text())
def test_the_bound_counts_every_byte_and_every_allowed_token(system, user):
    body = {"messages": [{"role": "system", "content": system}, {"role": "user", "content": user}]}
    size = len((system + user).encode("utf-8", "surrogatepass"))
    assert most_input_tokens(body) >= size
    price = JudgePrice(input=2.0, output=8.0)
    profile = load_profile("openai-text", model="m").model_copy(update={"price": price})
    assert most_cost(profile, body) >= cost(price, size, profile.params.max_tokens)


class Clock:
    """Seconds that pass only where somebody sleeps."""

    def __init__(self):
        self.now = 100.0
        self.Event = asyncio.Event

    def monotonic(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds


def starts_of(pace, tokens, clock, *, refused_after=()):
    """When each request may begin, the ones numbered in `refused_after` being answered with 429 for 7 s."""

    async def ask():
        found = []
        for number, amount in enumerate(tokens):
            await pace.wait(amount)
            found.append(clock.now)
            if number in refused_after:
                pace.refused(7.0)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "time", clock)
        patch.setattr(module, "asyncio", clock)
        return asyncio.run(ask())


@given(
    st.none() | st.integers(1, 6000),
    st.none() | st.integers(100, 10**6),
    st.lists(st.integers(1, 5000), min_size=2, max_size=20),
)
def test_requests_and_tokens_a_minute_are_kept_and_no_time_is_lost(rpm, tpm, tokens):
    clock = Clock()
    found = starts_of(Pace(rpm, tpm), tokens, clock)
    for earlier, later, amount in zip(found, found[1:], tokens, strict=False):
        least = max(60 / rpm if rpm else 0.0, 60 * amount / tpm if tpm else 0.0)
        assert later - earlier == pytest.approx(least, rel=1e-6, abs=1e-6)


def test_a_refusal_pauses_everybody_and_halves_the_pace():
    clock, pace = Clock(), Pace(60, None)
    found = starts_of(pace, [1] * 5, clock, refused_after=(1,))
    assert [round(time - found[0], 6) for time in found] == [0.0, 1.0, 8.0, 10.0, 12.0]
    for _ in range(20):
        pace.accepted()
    assert [round(x, 6) for x in starts_of(pace, [1] * 3, clock)] == [114.0, 115.0, 116.0]
