"""An OpenAI-compatible server, asked over HTTP: every request tried again where that may help, several at a
time where that is wanted.
"""

from __future__ import annotations

import ipaddress
import json
import os
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Self
from urllib.parse import urlsplit

import httpx2

from lora_eval.errors import InputError, ServerError

KEY = "LORA_EVAL_SERVER_KEY"
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 8.0
_SHOWN = 400
_MOST = 64  # connections

Heard = Callable[[int, Any], None]
"""Called with (place of the request, its reply)."""
Where = Callable[[Mapping[str, Any]], str]
"""Says where a body is posted."""


class Refused(Exception):
    """The server answered a request with an error; `status` is HTTP's, the text what it said."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        super().__init__(f"{status}: {text}" if text else str(status))


class ServerClient:
    """Asks the server at `url`, which ends with `/v1` as OpenAI's clients take it; `close()` it afterwards.

    A key in $LORA_EVAL_SERVER_KEY is sent, and is in no message.

    Raises:
        InputError: the URL is none of http or https, or a key would go in plain text to another machine.
    """

    def __init__(self, url: str, *, timeout: float = 300.0, tries: int = 4) -> None:
        self.url = check_url(url)
        self.root = self.url.removesuffix("/v1")
        self._tries = tries
        self._key = os.environ.get(KEY) or None
        local = is_loopback(self.url)
        if self._key and not local and urlsplit(self.url).scheme == "http":
            raise InputError(f"{self.url}: is plain http, which would show the key of ${KEY}; use https")
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(timeout, connect=10.0),
            limits=httpx2.Limits(max_connections=_MOST, max_keepalive_connections=_MOST),
            verify=httpx2.create_ssl_context(trust_env=not local),
            trust_env=not local,  # a proxy of the environment does not know this machine
            follow_redirects=False,  # the key goes to the given URL only
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, place: str) -> Any:
        """Return the JSON of `place`, which begins with `/` and is looked up beside `/v1`.

        Raises:
            Refused: the server answers with an error, or with what is no JSON.
            ServerError: it cannot be reached, or is failing after all tries.
        """
        return _parsed(self._send("GET", self.root + place, None))

    def post(self, place: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON reply; raises as `get`."""
        return _parsed(self._send("POST", self.root + place, body))

    def tell(self, place: str, body: Mapping[str, Any]) -> str:
        """Return the reply as text, asked once: for what changes the server. Raises as `get`."""
        return self._send("POST", self.root + place, body, tries=1)

    def ask_all(
        self, place: str | Where, bodies: Sequence[Mapping[str, Any]], width: int, heard: Heard
    ) -> None:
        """Post all bodies, at most `width` at a time, and call `heard` here for each reply as it comes.
        `place` may say it for each body.

        Raises as `get`, after the requests that are under way.
        """
        places = [place if isinstance(place, str) else place(body) for body in bodies]
        if width == 1:
            for index, body in enumerate(bodies):
                heard(index, self.post(places[index], body))
            return
        waiting = iter(range(len(bodies)))
        with ThreadPoolExecutor(min(width, _MOST, max(1, len(bodies)))) as pool:
            running: dict[Future[Any], int] = {}

            def start() -> None:
                if (index := next(waiting, None)) is not None:
                    running[pool.submit(self.post, places[index], bodies[index])] = index

            for _ in range(min(width, _MOST)):
                start()
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    heard(running.pop(future), future.result())
                    start()

    def _send(self, method: str, url: str, body: Mapping[str, Any] | None, tries: int | None = None) -> str:
        tries, fault, status = tries or self._tries, "", 0
        for number in range(tries):
            if number:
                time.sleep(min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** (number - 1)))
            try:
                reply = self._client.request(method, url, json=body)
            except (httpx2.TransportError, ssl.SSLError) as error:
                fault, status = f"{type(error).__name__} {error}".strip(), 0
                continue
            if reply.status_code == 200:
                return reply.text
            fault, status = self._scrub(_message(reply)), reply.status_code
            if status not in _AGAIN:
                break
        if status:
            raise Refused(status, fault)
        raise ServerError(f"{url}: {self._scrub(fault)} ({tries} tries); is the server up at {self.url}?")

    def _scrub(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def check_url(url: str) -> str:
    """Return the URL without a slash at its end.

    Raises:
        InputError: it is none of http or https, has no host, or does not end with `/v1`.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"{url}: expected the URL of a server, such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            f"{parts.hostname}: give the URL without user, query and fragment; a key goes in ${KEY}"
        )
    plain = url.rstrip("/")
    if not parts.path.rstrip("/").endswith("/v1"):
        raise InputError(f"{url}: expected a URL that ends with /v1, as OpenAI's clients take it: {plain}/v1")
    return plain


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _message(reply: httpx2.Response) -> str:
    """What an error reply says: OpenAI's `error.message` where it has one, else its text."""
    try:
        body = reply.json()
        said = body["error"]["message"] if isinstance(body["error"], dict) else body["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        said = reply.text
    return " ".join(str(said).split())[:_SHOWN]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(200, f"answered with what is no JSON: {' '.join(text.split())[:_SHOWN]}") from error
