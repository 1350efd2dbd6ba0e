"""Asks what a plan has and the store has not; every finished call is on disk before the next one counts."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lora_eval.errors import InputError, JudgeError, SpendingCapError
from lora_eval.judges.budget import Budget, Pace, cost, likely_input_tokens, most_cost
from lora_eval.judges.calls import Call, Plan
from lora_eval.judges.client import Answered, JudgeClient
from lora_eval.judges.own_rows import notes
from lora_eval.judges.profiles import read_key
from lora_eval.judges.replies import read_reply
from lora_eval.judges.store import VerdictStore
from lora_eval.judges.verdicts import EQUAL, asks, is_known, key_of, stored, verdict_of
from lora_eval.protocols import Progress
from lora_eval.records import JudgeReply, JudgeVerdict


@dataclass(slots=True)
class Outcome:
    """What one run did. `verdicts` are the plan's, this run's and those of earlier ones."""

    verdicts: list[JudgeVerdict] = field(default_factory=list)
    asked: int = 0
    known: int = 0
    retried: int = 0
    spent: float = 0.0
    notes: list[str] = field(default_factory=list)


def run_plan(
    plan: Plan, folder: Path, *, max_cost: float | None, progress: Progress = lambda what, done, total: None
) -> Outcome:
    """Return every verdict of the plan, asking only for those that `folder` does not hold.

    Raises:
        InputError: a price and no `max_cost`, no key, or another process is judging into `folder`.
        JudgeError: the endpoint refuses, or keeps failing; what was answered is stored.
        KeyboardInterrupt: after Ctrl-C, once the calls in flight are stored (a second one stops at once).
        SpendingCapError: the next call might cost more than is left; what was answered is stored.
    """
    if plan.profile.price is not None and max_cost is None:
        raise InputError(f"judge {plan.profile.name} has a price: give --max-cost DOLLARS")
    key = read_key(plan.profile)
    with VerdictStore(folder) as store:
        outcome = Outcome(known=sum(is_known(plan, call, store.verdicts) for call in plan.calls))
        budget = Budget(max_cost, sum(verdict.cost for verdict in store.verdicts.values()))
        work = _Work(plan, store, budget, outcome, progress)
        try:
            asyncio.run(work.run(key))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        finally:
            outcome.spent = budget.spent
        if work.interrupted:
            raise KeyboardInterrupt
        outcome.verdicts = [verdict for call in plan.calls for verdict in stored(plan, call, store.verdicts)]
        outcome.notes = notes(outcome.verdicts)
    return outcome


@contextlib.asynccontextmanager
async def _on_interrupt(heard: Callable[[], bool]) -> AsyncIterator[None]:
    """Call `heard` on Ctrl-C instead of stopping; where it returns False, stop."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def handle() -> None:
        if not heard() and task is not None:
            task.cancel()

    try:
        loop.add_signal_handler(signal.SIGINT, handle)
    except (NotImplementedError, RuntimeError, ValueError):  # not the main thread, or no such signals here
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


class _Work:
    """The workers of one run."""

    def __init__(
        self, plan: Plan, store: VerdictStore, budget: Budget, outcome: Outcome, progress: Progress
    ) -> None:
        self.plan, self.store, self.budget, self.outcome = plan, store, budget, outcome
        self.progress = progress
        self.done = 0
        self.capped = False
        self.fault: JudgeError | None = None
        self.interrupted = False

    async def run(self, key: str | None) -> None:
        limits = self.plan.profile.limits
        pace = Pace(limits.rpm, limits.tpm)
        calls = iter(self.plan.calls)
        async with JudgeClient(self.plan.profile, key, pace) as client:
            try:
                async with _on_interrupt(partial(self._interrupt, client)):
                    await self._probe(client)
                    async with asyncio.TaskGroup() as group:
                        for _ in range(min(limits.concurrency, len(self.plan.calls))):
                            group.create_task(self._worker(calls, client))
            except BaseExceptionGroup as errors:
                raise _first(errors) from errors
            finally:
                self.outcome.retried = client.retried
                await self.store.drain()
        if self.interrupted:
            return
        if self.fault is not None:
            raise self.fault
        if self.capped:
            left = sum(not is_known(self.plan, call, self.store.verdicts) for call in self.plan.calls)
            raise SpendingCapError(
                f"--max-cost {self.budget.cap:g}: ${self.budget.spent:.4f} spent, {left} of "
                f"{len(self.plan.calls)} calls are left and the next might cost more than remains; "
                "the same command with a higher --max-cost goes on from here"
            )

    async def _probe(self, client: JudgeClient) -> None:
        """Ask the first call alone where the verdict stands elsewhere than in the text: servers ignore in
        silence what they do not know, and every other call would be paid for nothing.

        Raises:
            JudgeError: no reply to it has a verdict.
        """
        known = self.store.verdicts
        proven = any(verdict.value is not None and verdict.tries for verdict in known.values())
        left = (call for call in self.plan.calls if call.messages and not is_known(self.plan, call, known))
        call = next(left, None)
        if self.plan.profile.verdict == "text" or proven or call is None:
            return
        await self._finish(call, client)
        last = list(stored(self.plan, call, known))[-1:]
        if last and last[0].value is None and not self.capped and not self.interrupted:
            raise JudgeError(
                f"judge {self.plan.profile.name} at {self.plan.profile.base_url}: {last[0].reason} (asked "
                f"{last[0].attempt + 1} times), so nothing else was asked; take a profile that this endpoint "
                "can answer (openai-text needs text only)"
            )

    def _interrupt(self, client: JudgeClient) -> bool:
        """Let the calls in flight finish, for they are paid for; the second time return False."""
        first, self.interrupted = not self.interrupted, True
        client.stopping = True
        return first

    async def _worker(self, calls: Iterator[Call], client: JudgeClient) -> None:
        for call in calls:
            if self.capped or self.interrupted or self.fault is not None:
                return
            try:
                await self._finish(call, client)
            except JudgeError as error:
                # The others finish the calls that they have made: those are paid for.
                self.fault = self.fault or error
                client.stopping = True
                return
            self.done += 1
            self.progress("judging", self.done, len(self.plan.calls))

    async def _finish(self, call: Call, client: JudgeClient) -> None:
        """Ask until there is a verdict, at most three times; a stored reply is not asked for again."""
        for attempt in range(asks(self.plan.profile)):
            key = key_of(self.plan, call, attempt)
            verdict = self.store.verdicts.get(key)
            if verdict is None:
                verdict = await self._ask(call, key, attempt, client)
            if verdict is None or verdict.value is not None:
                return

    async def _ask(self, call: Call, key: str, attempt: int, client: JudgeClient) -> JudgeVerdict | None:
        """The verdict, stored; None where the cap lets nothing be asked."""
        if call.messages is None:
            tie = verdict_of(self.plan, call, key, attempt, EQUAL)
            await self.store.add(tie)
            return tie
        body = self.plan.body(call)
        most = most_cost(self.plan.profile, body)
        if not await self.budget.reserve(most):
            self.capped = True
            return None
        spent = most  # where the call fails or is stopped, it may have been billed
        try:
            answered = await client.ask(body, likely_input_tokens(body) + self.plan.profile.params.max_tokens)
            reply = _scrubbed(_reply(self.plan, answered), client)
            spent, guessed = _cost(self.plan, reply, answered, body)
            verdict = verdict_of(
                self.plan, call, key, attempt, reply, tries=answered.tries, seconds=answered.seconds,
                dollars=spent, guessed=guessed,
            )  # fmt: skip
            self.outcome.asked += 1
            await self.store.add(verdict)
            return verdict
        finally:
            self.budget.settle(most, spent)


def _reply(plan: Plan, answered: Answered) -> JudgeReply:
    if answered.refusal is None:
        return read_reply(plan.profile, answered.body)
    reason = f"the endpoint refused it: {answered.refusal}"
    return JudgeReply(value=None, reason=reason, input_tokens=0, output_tokens=0)


def _scrubbed(reply: JudgeReply, client: JudgeClient) -> JudgeReply:
    reason = None if reply.reason is None else client.scrub(reply.reason)
    return reply.model_copy(update={"text": client.scrub(reply.text), "reason": reason})


def _cost(plan: Plan, reply: JudgeReply, answered: Answered, body: dict[str, Any]) -> tuple[float, bool]:
    """Dollars of the call and of its lost tries, and whether they are a bound for want of a count."""
    price = plan.profile.price
    most = most_cost(plan.profile, body)
    lost = answered.lost * most
    if reply.input_tokens is None or reply.output_tokens is None:
        return most + lost, True
    return cost(price, reply.input_tokens, reply.output_tokens) + lost, False


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error to tell; workers that were stopped by it are no news."""
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            return _first(error)
        return error
    return errors
