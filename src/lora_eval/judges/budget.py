"""Dollars and pace: what a call may cost is reserved before it is made; requests and tokens a minute are
kept.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping
from typing import Any

from lora_eval.records import JudgePrice, JudgeProfile

_OVERHEAD = 16  # tokens that a chat template adds to each message
_CHARS_PER_TOKEN = 4.0  # of English text, for estimates only


def most_input_tokens(body: Mapping[str, Any]) -> int:
    """Return a bound on the prompt's tokens: no tokenizer in use makes more tokens than UTF-8 bytes."""
    messages = body["messages"]
    tools = json.dumps(body["tools"]) if "tools" in body else ""
    texts = [tools, *(str(message["content"]) for message in messages)]
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) + _OVERHEAD * (len(messages) + 1)


def likely_input_tokens(body: Mapping[str, Any]) -> int:
    """Return an estimate of the prompt's tokens: a quarter of its characters."""
    characters = sum(len(str(message["content"])) for message in body["messages"])
    return math.ceil(characters / _CHARS_PER_TOKEN) + 4 * len(body["messages"])


def cost(price: JudgePrice | None, input_tokens: float, output_tokens: float) -> float:
    """Return dollars."""
    return 0.0 if price is None else (price.input * input_tokens + price.output * output_tokens) / 1e6


def most_cost(profile: JudgeProfile, body: Mapping[str, Any]) -> float:
    """Return the most that one call can cost."""
    return cost(profile.price, most_input_tokens(body), profile.params.max_tokens)


class Budget:
    """Never lets more than `cap` dollars be spent: `spent` for good, and what calls in flight may still
    cost.
    """

    def __init__(self, cap: float | None, spent: float = 0.0) -> None:
        self.cap = math.inf if cap is None else cap
        self.spent = spent
        self._reserved = 0.0
        self._settled = asyncio.Event()

    async def reserve(self, most: float) -> bool:
        """Return whether a call that costs at most `most` may be made.

        Where what is in flight stands in its way, it waits for that to be settled, for most calls cost less
        than they might.
        """
        room = self.cap * (1 + 1e-12)
        while self.spent + self._reserved + most > room:
            if self._reserved <= 0.0 or self.spent + most > room:
                return False
            self._settled.clear()
            await self._settled.wait()
        self._reserved += most
        return True

    def settle(self, most: float, actual: float) -> None:
        """Replace what was reserved by what the call has cost. No await: a call may be stopped here too."""
        self._reserved = max(0.0, self._reserved - most)
        self.spent += actual
        self._settled.set()


class Pace:
    """Requests and tokens a minute, spread evenly; slower after the endpoint said that it was asked too
    fast.
    """

    def __init__(self, rpm: int | None, tpm: int | None) -> None:
        self._rates = [None if limit is None else limit / 60.0 for limit in (rpm, tpm)]
        self._free_at = [0.0, 0.0]
        self._pause_until = 0.0
        self._share = 1.0

    async def wait(self, tokens: int) -> None:
        """Return when a request of so many tokens may be made."""
        now = time.monotonic()
        start = max(now, self._pause_until)
        start = max(start, *self._free_at)
        for kind, amount in enumerate((1, tokens)):
            rate = self._rates[kind]
            if rate is not None:
                self._free_at[kind] = start + amount / (rate * self._share)
        if start > now:
            await asyncio.sleep(start - now)

    def refused(self, seconds: float) -> None:
        """Ask nothing for so many seconds, and then at half the pace."""
        self._pause_until = max(self._pause_until, time.monotonic() + seconds)
        self._share = max(1 / 16, self._share / 2)

    def accepted(self) -> None:
        """Ask a little faster again, up to the limits."""
        self._share = min(1.0, self._share * 1.05)
