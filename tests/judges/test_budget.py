"""Dollars: whatever is in flight at once, the cap is never passed, and nothing is refused that would fit."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.judges.budget import Budget, cost, most_cost, most_input_tokens
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
