"""What is asked of an OpenAI-compatible server, and what its replies mean: plain functions, no connection.

Prompts are token ids throughout: no server's tokenizer stands between two arms.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from lora_eval.protocols import Score, ScoreRequest

COMPLETIONS = "/v1/completions"
UNKNOWN = "lora-eval-no-such-model"
PROMPT_LOGPROBS, ECHO = "prompt_logprobs", "echo"
_TOKEN = re.compile(r"token_id:(\d+)")


def listed_entry(models: Mapping[str, Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    """Return the entry of /v1/models that requests for `name` get, None where it is not listed. SGLang lists
    an adapter by its own name, and takes requests for BASE:ADAPTER (a name without a colon is its base).
    """
    own = models.get(name)
    if own is not None:
        return own
    return next((e for key, e in models.items() if e.get("parent") and f"{e['parent']}:{key}" == name), None)


def name_prefix(models: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """Return what stands before an adapter's listed name in requests: `BASE:` on SGLang, else nothing."""
    entry = listed_entry(models, name)
    return f"{entry['parent']}:" if entry is not None and name not in models else ""


def unknown_name(models: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """Return a name that a server which serves `name` does not have, of the same form."""
    return name_prefix(models, name) + UNKNOWN


Given = ParamSpec("Given")
Read = TypeVar("Read")


class Unread(Exception):
    """A reply does not hold what was asked for; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply to a completion. `token_ids` is None where the server names no ids; `log_probabilities` and
    `leads` (over the next likeliest token, in nats) hold one number a token, or nothing.
    """

    text: str
    token_ids: tuple[int, ...] | None
    finish_reason: str | None
    log_probabilities: tuple[float, ...] = ()
    leads: tuple[float, ...] = ()
    prompt_token_ids: tuple[int, ...] | None = None

    def ids(self, tokenizer: Any) -> tuple[int, ...]:
        """Return the answer's token ids; where the server names none, those of its text."""
        if self.token_ids is not None:
            return self.token_ids
        return tuple(tokenizer.encode(self.text, add_special_tokens=False))


def greedy_body(model: str, prompt: Sequence[int], max_tokens: int, **more: Any) -> dict[str, Any]:
    """Return a completion that takes the likeliest tokens, with their log-probabilities and ids."""
    return {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "repetition_penalty": 1.0,  # a server takes the model's own settings for what is not said
        "ignore_eos": True,
        "logprobs": 2,
        "skip_special_tokens": False,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    } | more


def _told(read: Callable[Given, Read]) -> Callable[Given, Read]:
    """Say of a reply of another shape that it was not understood: servers differ, and ours is not to end."""

    @wraps(read)
    def call(*given: Given.args, **named: Given.kwargs) -> Read:
        try:
            return read(*given, **named)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise Unread(f"the reply is not as OpenAI's or vLLM's: {type(error).__name__} {error}") from error

    return call


@_told
def read_answer(reply: Any) -> Answer:
    """Return what a completion's reply says.

    Raises:
        Unread: it holds no choice.
    """
    choice = _choice(reply)
    logprobs = choice.get("logprobs") or {}
    ids = choice.get("token_ids")
    if ids is None:
        ids = _named(logprobs.get("tokens") or ())
    values = tuple(float(value) for value in logprobs.get("token_logprobs") or () if value is not None)
    tops = [top for top in logprobs.get("top_logprobs") or () if top]
    prompt = choice.get("prompt_token_ids") or reply.get("prompt_token_ids")
    return Answer(
        str(choice.get("text") or ""),
        None if ids is None else tuple(ids),
        choice.get("finish_reason"),
        values,
        tuple(map(_lead, tops)),
        tuple(prompt) if prompt else None,
    )


def read_chat(reply: Any) -> Answer:
    """Return what a chat completion's reply says.

    Raises:
        Unread: it holds no message.
    """
    try:
        choice = reply["choices"][0]
        ids, text = choice.get("token_ids"), choice["message"]["content"] or ""
        prompt = reply.get("prompt_token_ids") or choice.get("prompt_token_ids")
        return Answer(
            str(text),
            None if ids is None else tuple(ids),
            choice.get("finish_reason"),
            prompt_token_ids=tuple(prompt) if prompt else None,
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Unread("the reply of chat completions holds no message") from error


def _choice(reply: Any) -> Mapping[str, Any]:
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not choices or not isinstance(choices[0], dict):
        raise Unread("the reply holds no choice")
    return choices[0]


def _named(tokens: Sequence[Any]) -> tuple[int, ...] | None:
    """Return ids from `token_id:N`, None where tokens are texts."""
    found = [_TOKEN.fullmatch(str(token)) for token in tokens]
    return tuple(int(match[1]) for match in found if match) if found and all(found) else None


def _lead(top: Mapping[str, float]) -> float:
    first, second = sorted([*top.values(), float("-inf")], reverse=True)[:2]
    return float(first - second)


def score_body(model: str, ids: Sequence[int], mode: str) -> dict[str, Any]:
    """Return the completion whose reply holds the log-probability of every token of `ids`."""
    body = greedy_body(model, ids, 1)
    if mode == ECHO:
        return body | {"echo": True, "logprobs": 1}
    return body | {"prompt_logprobs": 1, "logprobs": 1}


Row = Mapping[int, float]


@_told
def read_rows(reply: Any, ids: Sequence[int], mode: str) -> list[Row]:
    """Return for each token but the first {token id: log-probability}, with the prompt's own token and, where
    another is likelier, that one.

    Raises:
        Unread: the reply holds no log-probabilities of the prompt.
    """
    choice = _choice(reply)
    if mode == ECHO:
        return _echoed(choice, ids)
    rows = choice.get("prompt_logprobs")
    if not rows or len(rows) != len(ids):
        raise Unread("the server gives no log-probabilities of the prompt (prompt_logprobs)")
    return [{int(token): float(entry["logprob"]) for token, entry in (row or {}).items()} for row in rows[1:]]


def _echoed(choice: Mapping[str, Any], ids: Sequence[int]) -> list[Row]:
    logprobs = choice.get("logprobs") or {}
    values, tops = logprobs.get("token_logprobs") or (), logprobs.get("top_logprobs") or ()
    if len(values) < len(ids) or len(tops) < len(ids):
        raise Unread("the server does not repeat the prompt with log-probabilities (echo)")
    rows: list[Row] = []
    for place in range(1, len(ids)):
        row = {ids[place]: float(values[place])}
        named = {_TOKEN.fullmatch(str(token)): value for token, value in (tops[place] or {}).items()}
        row |= {int(match[1]) if match else -1: float(value) for match, value in named.items()}
        rows.append(row)
    return rows


def read_score(rows: Sequence[Row], request: ScoreRequest) -> Score:
    """Return the score of a request from the rows of all its tokens.

    Raises:
        Unread: a token's own log-probability is missing.
    """
    start = len(request.context_ids) - 1
    values, greedy = array("f"), True
    for row, token in zip(rows[start:], request.continuation_ids, strict=True):
        if token not in row:
            raise Unread(f"the server gives no log-probability for token {token}")
        best = max(row.values())
        # Of equals the lower id, as in torch.
        greedy = greedy and token == min(other for other, value in row.items() if value == best)
        values.append(row[token])
    return Score(sum(values), greedy, values)
