"""One chat completion from an OpenAI-compatible endpoint, asked again where that may help."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any

import httpx2

from lora_eval.errors import JudgeError
from lora_eval.judges.budget import Pace
from lora_eval.judges.profiles import is_loopback
from lora_eval.records import JudgeProfile

_AGAIN = frozenset({408, 409, 425, 429})
_STOP = frozenset({401, 402, 403, 404, 405})
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0
_SHOWN = 500
# httpcore looks at every connection of a pool at each request: with 64 in one pool that was half of the time.
_POOL = 8


@dataclass(frozen=True, slots=True)
class Answered:
    """The reply's JSON (None: the endpoint refused this very request, for `refusal`), tries and seconds.

    `lost` requests were sent and never answered: the endpoint may have billed them.
    """

    body: Any
    refusal: str | None
    tries: int
    lost: int
    seconds: float


class JudgeClient:
    """Asks one endpoint. Every message that leaves it is free of the key."""

    def __init__(self, profile: JudgeProfile, key: str | None, pace: Pace) -> None:
        self._profile = profile
        self._key = key
        self._pace = pace
        self._answered = 0
        self._next = 0
        self.retried = 0
        self.stopping = False  # set: nothing is tried again

    async def __aenter__(self) -> JudgeClient:
        timeout, url = self._profile.timeout, self._profile.base_url or ""
        count = self._profile.limits.concurrency
        self._url = f"{url}/chat/completions"
        local = is_loopback(url)
        certificates = httpx2.create_ssl_context(trust_env=not local)
        self._pools = [
            httpx2.AsyncClient(
                headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
                timeout=httpx2.Timeout(timeout.read, connect=timeout.connect, pool=None),
                limits=httpx2.Limits(max_connections=_POOL, max_keepalive_connections=_POOL),
                verify=certificates,
                trust_env=not local,  # a proxy of the environment does not know this machine
                follow_redirects=False,  # the key goes to the given URL only
            )
            for _ in range(-(-count // _POOL))
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in self._pools:
            await pool.aclose()

    async def ask(self, body: Mapping[str, Any], tokens: int) -> Answered:
        """Return the reply.

        429, 5xx, a lost connection, a timeout and what is no JSON are asked for again, up to the profile's
        `retries`, after what Retry-After says or else 0.5 s, 1 s, ... 60 s with jitter.

        Raises:
            JudgeError: the endpoint refuses every request, or is still failing after all retries.
        """
        started, lost = time.monotonic(), 0
        for number in range(self._profile.retries + 1):
            await self._pace.wait(tokens)
            self._next = (self._next + 1) % len(self._pools)
            wait: float | None = None
            try:
                response = await self._pools[self._next].post(self._url, json=body)
            except (httpx2.RequestError, ssl.SSLError) as error:
                lost += not isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
                fault = f"{type(error).__name__} {error}".strip()
            else:
                reply = _json(response)
                if response.status_code == 200 and reply is not None:
                    self._answered += 1
                    self._pace.accepted()
                    return Answered(reply, None, number + 1, lost, time.monotonic() - started)
                fault = self._fault(response)
                if self._refuses(response.status_code, fault):
                    return Answered(None, fault, number + 1, lost, time.monotonic() - started)
                wait = retry_after(response.headers.get("retry-after"))
                if response.status_code == 429:
                    self._pace.refused(backoff(number, random.random) if wait is None else wait)
            if self.stopping:
                break
            if number < self._profile.retries:
                self.retried += 1
                await asyncio.sleep(backoff(number, random.random) if wait is None else wait)
        said = f"{self._url}: {self.scrub(fault)} ({number + 1} tries)"
        raise JudgeError(f"{said}; the same command goes on from here")

    def scrub(self, text: str) -> str:
        """Return the text without the key: some endpoints repeat it."""
        return text.replace(self._key, "[key]") if self._key else text

    def _refuses(self, status: int, fault: str) -> bool:
        """Whether this request alone is refused.

        Raises:
            JudgeError: all of them are, as far as one can know.
        """
        if status in _AGAIN or status >= 500 or status == 200:
            return False
        if status in _STOP or 300 <= status < 400 or not self._answered:
            raise JudgeError(f"{self._url}: {fault}{_advice(status, self._profile)}")
        return True

    def _fault(self, response: httpx2.Response) -> str:
        text = " ".join(response.text.split())
        said = self.scrub(text)[:_SHOWN]
        if response.status_code == 200:
            return f"answered 200 with what is no JSON: {said}"
        return f"answered {response.status_code} {response.reason_phrase}: {said}".rstrip(": ")


def backoff(number: int, draw: Callable[[], float]) -> float:
    """Return the seconds before try `number` + 2: 0.5, 1, 2, ... 60, of which a half is drawn."""
    longest = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0**number)
    return longest * (0.5 + 0.5 * draw())


def retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for (a number or a date); None where it asks for
    none.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(seconds, 0.0), 600.0) if seconds == seconds else None


def _json(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def _advice(status: int, profile: JudgeProfile) -> str:
    return {
        401: f"; is the key in {profile.api_key_env or 'api_key_env (not set)'} right?",
        403: f"; may the key use {profile.model}?",
        404: f"; is {profile.model} a model of this endpoint, and does --judge-url end with /v1?",
        400: "; some models want max_tokens_field: max_completion_tokens, and no temperature",
    }.get(status, "")
